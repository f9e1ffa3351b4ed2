"""Tables as a page that a browser shows as it is: no script, no style from elsewhere."""

import html
from collections.abc import Mapping, Sequence

STYLE = (
    "body{font:14px sans-serif} table{border-collapse:collapse} "
    "td,th{border:1px solid #ccc;padding:4px 8px;vertical-align:top;text-align:left} "
    "td{font-family:monospace;white-space:pre-wrap}"
)


def table_page(title: str, rows: Sequence[Mapping[str, str | float]]) -> str:
    """An HTML page with one table; the columns are the keys of the first row, in order. Texts are shown literally."""
    columns = list(rows[0]) if rows else []
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(_text(row[column]))}</td>" for column in columns) + "</tr>" for row in rows
    )
    name = html.escape(title)
    return (
        f'<!doctype html>\n<meta charset="utf-8">\n<title>{name}</title>\n<style>{STYLE}</style>\n'
        f"<h1>{name}</h1>\n<table>\n<tr>{head}</tr>\n{body}\n</table>\n"
    )


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
