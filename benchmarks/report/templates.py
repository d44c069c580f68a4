"""Text from templates: `templates/NAME` in the package that uses it."""

from __future__ import annotations

import re
from statistics import fmean, stdev
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from labelcurve.bundle.text import counted, duration, percent

NONE = "–"


def environment(package: str, *, autoescape: bool = False) -> Environment:
    """Templates of a package, with filters for figures.

    `f(spec)` is Python's format(), `each(form)` applies str.format() to each item;
    `percent(digits)` and `to(high)` write shares, `points(digits)` a difference of shares in
    percentage points, `ms` milliseconds, `count` a number without decimals, `counted(thing)` a
    number of things, `duration` seconds, `versions` packages with their versions; `flat` joins
    the lines of a text.
    """
    found = Environment(
        loader=PackageLoader(package),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=autoescape,
    )
    found.filters |= {
        "f": format,
        "each": lambda items, form: [form.format(item) for item in items],
        "mean": fmean,
        "deviation": stdev,
        "percent": lambda share, digits=1: percent(share, digits),
        "to": lambda low, high: f"{low * 100:.2f} to {percent(high)}",
        "points": points,
        "ms": ms,
        "count": lambda value: f"{value:,.0f}",
        "counted": counted,
        "duration": duration,
        "versions": lambda packages: ", ".join(f"{n} {v}" for n, v in packages.items()),
        "stable": lambda stable: {None: NONE, True: "stable", False: "UNSTABLE"}[stable],
        "flat": flat,
    }
    found.globals["NONE"] = NONE
    return found


def render(package: str, name: str, **values: Any) -> str:
    """Render the Markdown template `name` of a package."""
    return environment(package).get_template(f"{name}.md.j2").render(**values)


def flat(text: str) -> str:
    """Join the lines of a paragraph."""
    return re.sub(r"[ \n]+", " ", str.__str__(text)).strip(" ")


def points(difference: float, digits: int = 2) -> str:
    """A difference of shares in percentage points, with its sign."""
    value = round(difference * 100, digits)
    return f"{value:+.{digits}f}" if value else f"{0:.{digits}f}"


def ms(value: float | None) -> str:
    """Milliseconds to three significant digits."""
    if value is None:
        return NONE
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def tight(text: str) -> str:
    """Drop the blank lines of a table."""
    return "\n".join(line for line in str.__str__(text).splitlines() if line.strip())
