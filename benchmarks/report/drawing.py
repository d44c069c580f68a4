"""Style of the plots: SVG in the colours of the page, and PNG on white.

Text in an SVG takes the page's colour, so one file suits light, dark and paper.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO, StringIO
from typing import Any, Final

from matplotlib import font_manager, rcParams, style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from labelcurve.benchmarks.record import Model, Report

COLOURS: Final = (
    *("#e08214", "#2f8fd0", "#2ca876", "#a06cd5", "#d1495b", "#7f8c2d", "#14909c", "#b0567f"),
)
"""Colours by number of labels, legible on white and on near-black."""
DASHES: Final = ("-", "--", ":", "-.")
MARKERS: Final = ("o", "s", "^", "D")
"""Markers by variant."""

# Stand-ins that no plot uses otherwise: replaced by the page's own colours.
INK, GRID = "#010203", "#040506"
_STYLE: Final[dict[str, Any]] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "labelcurve",
    "font.size": 10,
    "text.parse_math": False,  # a class may be called $5
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "xtick.minor.visible": False,
}
FONTS: Final = (
    *("Noto Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans", "Arial Unicode MS"),
    *("WenQuanYi Zen Hei", "Droid Sans Fallback", "PingFang SC", "Microsoft YaHei", "Unifont"),
)
"""Fallback fonts for glyphs that matplotlib's own font lacks, in PNG; an SVG holds text, which the
reader's fonts show."""
LONGEST = 24
"""Maximum length of a class name in a plot."""


@contextmanager
def _themed(ink: str, grid: str, paper: str) -> Iterator[None]:
    inked = ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
    installed = set(font_manager.get_font_names())
    theme = {
        **_STYLE,
        "font.family": ["sans-serif", *(name for name in FONTS if name in installed)],
        **dict.fromkeys(inked, ink),
        "axes.edgecolor": grid,
        "grid.color": grid,
        "axes.facecolor": "none",
        "figure.facecolor": paper,
    }
    with style.context(theme), warnings.catch_warnings():
        # Glyphs that no installed font has are a box in a PNG, and no warning.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        yield


Draw = Callable[[Report], Figure]


def svg(draw: Draw, report: Report, title: str) -> str:
    """Render a plot as an `svg` element in the page's colours, with `title` as its text."""
    buffer = StringIO()
    metadata: dict[str, Any] = {"Date": None, "Creator": None}
    with _themed(INK, GRID, "none"):
        draw(report).savefig(
            buffer, format="svg", metadata=metadata, bbox_inches="tight", pad_inches=0.05
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Two decimals of a point are finer than any screen, and save a third of the size.
    text = re.sub(r'="[^"]*"', lambda m: re.sub(r"(\d+\.\d{2})\d+", r"\1", m[0]), text)
    text = text.replace(INK, "currentColor").replace(GRID, "var(--grid)")
    return text.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)


def png(draw: Draw, report: Report) -> bytes:
    """Render a plot as PNG on white."""
    buffer = BytesIO()
    with _themed("#1c2024", "#d8dde2", "#ffffff"):
        draw(report).savefig(
            buffer, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None}
        )
    return buffer.getvalue()


def grid_colour() -> str:
    """Colour of grid lines and other secondary elements."""
    found: str = rcParams["grid.color"]
    return found


def colour(report: Report, model: Model) -> str:
    """Colour of a model by its number of labels, the same in every plot and table."""
    labels = sorted({other.n_labels for other in report.models})
    return COLOURS[labels.index(model.n_labels) % len(COLOURS)]


def short(name: str) -> str:
    """Shorten a class name for a plot."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def log_axis(axes: Axes, which: str) -> None:
    """Make an axis logarithmic with plain numbers."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axes.set_xscale("log") if which == "x" else axes.set_yscale("log")
    low, high = axis.get_data_interval()
    wide = low <= 0 or high / low > 4
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if wide else tuple(range(1, 10))))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
