"""What a section of the report is made of, and figures as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.gallery import Gallery
from benchmarks.record import Estimate
from benchmarks.report.drawing import Draw

NONE = "–"


@dataclass(frozen=True)
class Text:
    """A paragraph of inline Markdown."""

    text: str
    soft: bool = True
    """Smaller and grey: conditions; else a finding."""


@dataclass(frozen=True)
class Points:
    """A list of findings, each inline Markdown."""

    items: tuple[str, ...]


class Code(str):
    """A cell with a command in it."""

    __slots__ = ()


@dataclass(frozen=True)
class Rows:
    """A table: its first column is aligned left, the others right."""

    header: Sequence[str]
    body: Sequence[Sequence[str]]
    hues: Sequence[str] = ()
    """A colour a row, shown beside its first cell."""
    summary: str | None = None
    """Folded away below this line in HTML; None leaves it open."""
    headline: bool = False
    names: int = 1
    """First columns, which may hold names that others chose."""


@dataclass(frozen=True)
class Plot:
    """A plot with its caption; `name` is the file's."""

    name: str
    draw: Draw
    title: str
    """For those who cannot see it."""
    caption: str


@dataclass(frozen=True)
class Card:
    """A figure to be seen first."""

    title: str
    figure: str
    below: tuple[str, ...]
    hue: str


@dataclass(frozen=True)
class Cards:
    """Cards side by side."""

    cards: tuple[Card, ...]


@dataclass(frozen=True)
class Pictures:
    """Test images; only HTML shows them."""

    gallery: Gallery


Block = Text | Points | Rows | Plot | Cards | Pictures


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: Sequence[Block]


def percent(share: float, digits: int = 2) -> str:
    """0.9334 as `93.34 %`."""
    return f"{share * 100:.{digits}f} %"


def points(difference: float, digits: int = 2) -> str:
    """A difference of shares in percentage points, with its sign where it has one."""
    value = round(difference * 100, digits)
    return f"{value:+.{digits}f}" if value else f"{0:.{digits}f}"


def interval(low: float, high: float, digits: int = 2) -> str:
    """Two shares as `92.80 to 93.81 %`."""
    return f"{low * 100:.{digits}f} to {high * 100:.{digits}f} %"


def points_interval(found: Estimate, digits: int = 2) -> str:
    """A difference with its interval, in points."""
    span = f"{points(found.low, digits)} to {points(found.high, digits)}"
    return f"{points(found.value, digits)} ({span})"


def ms(value: float | None) -> str:
    """Milliseconds to three significant digits."""
    if value is None:
        return NONE
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def count(value: float) -> str:
    """A number without decimals, thousands apart."""
    return f"{value:,.0f}"


def p_value(value: float) -> str:
    """A probability as `0.034`, `< 0.001`."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def yes(stable: bool | None) -> str:
    """Whether a figure is stable, in a word."""
    return NONE if stable is None else "stable" if stable else "UNSTABLE"
