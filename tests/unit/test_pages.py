"""A table as an HTML page."""

from pipeline.pages import table_page


def test_every_cell_is_there_and_what_a_model_writes_is_text() -> None:
    page = table_page("step 3", [{"completion": "<script>alert(1)</script>\n<think>", "reward": 0.123456}])
    assert "<h1>step 3</h1>" in page
    assert "<th>completion</th><th>reward</th>" in page
    assert "<td>&lt;script&gt;alert(1)&lt;/script&gt;\n&lt;think&gt;</td><td>0.1235</td>" in page
    assert "<script" not in page


def test_a_table_without_rows_is_a_page() -> None:
    assert "<table>" in table_page("empty", [])
