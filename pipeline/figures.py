"""Figures as a person says them. The same wording in tables on the terminal and on the page."""

import math
from decimal import ROUND_HALF_UP, Decimal


def duration(seconds: float) -> str:
    """Seconds as `4.2 s`, `3 min 5 s`, `2 h 7 min`, `3 d 4 h`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def money(amount: float, currency: str = "") -> str:
    """With as many places as it takes to see something: `0.0031 USD`, `12.40 USD`, without its currency `12.40`."""
    places = 2 if amount >= 1 or amount <= 0 else 1 - math.floor(math.log10(amount))
    return f"{amount:,.{places}f} {currency}".rstrip()


def points(share: float, sign: str = "") -> str:
    """Hundredths to a tenth, halves up: as the page's script rounds, which must not differ from its tables.

    `sign` "+" writes that of a gain, too.
    """
    return format(Decimal(100 * share).quantize(Decimal("0.1"), ROUND_HALF_UP), sign)


def percent(share: float) -> str:
    return f"{points(share)} %"


def number(value: float) -> str:
    """A figure of metrics.json: integers whole, everything else with four significant digits."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def scaled(value: float, unit: str = "", step: int = 1000) -> str:
    """With a prefix for its size: `7.39 M`, `1.2 GB`; `step` 1024 for memory, KiB and so on."""
    prefixes, size = ["", "k", "M", "G", "T", "P", "E"], float(value)
    if step == 1024:
        prefixes = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"]
    for prefix in prefixes:
        if abs(size) < step or prefix == prefixes[-1]:
            break
        size /= step
    digits = f"{size:.0f}" if not prefix or size >= 100 else f"{size:.3g}"
    return f"{digits} {prefix}{unit}".rstrip()
