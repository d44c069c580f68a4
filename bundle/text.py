"""Formatting of figures, tables and user-supplied names, in Markdown."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path

_SPECIAL = re.compile(r"([\\`*_\[\]<>|~&])")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_BAR = re.compile(r"(?<!\\)\|")


def shown(path: Path | str) -> str:
    """A path, or a text with paths in it, as text that can be printed, on one line, and hashed:
    names need not be UTF-8."""
    text = os.fsencode(path).decode(errors="backslashreplace")
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def counted(n: int, thing: str) -> str:
    """`1 model`, `1,200 models`."""
    return f"{n:,} {thing}{'s' * (n != 1)}"


def listed(names: Iterable[str], most: int) -> str:
    """`a, b and 3 more`."""
    every = list(names)
    more = f" and {len(every) - most:,} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more


def duration(seconds: float) -> str:
    """`3.2 s`, `4 min 05 s`, `1 h 02 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min"


def percent(share: float, digits: int = 2) -> str:
    """0.9334 as `93.34 %`."""
    return f"{share * 100:.{digits}f} %"


def one(value: float) -> str:
    """A number with one decimal, and never `-0.0`."""
    return f"{round(value, 1) + 0.0:.1f}"


def plain(value: float) -> str:
    """A number to three digits, without an exponent: `1.25`, `2,000`, `0.00000002`."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{Decimal(f'{value:.3g}'):f}"


def table(header: Sequence[str], body: Sequence[Sequence[object]]) -> str:
    """A Markdown table; the first column is aligned left, the others right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    lines = [[bars(str(cell)) for cell in cells] for cells in (header, rule, *body)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def bars(cell: str) -> str:
    """A cell of a Markdown table, in which `|` would end it."""
    return _BAR.sub(r"\|", cell)


def escaped(text: str) -> str:
    """Escapes `text` for a paragraph or table cell of Markdown, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
