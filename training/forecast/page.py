"""The page that `plan` writes: the answer, one plot, three sentences. One file, no script."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from math import log10

import numpy as np

from labelcurve.bundle.text import counted, one
from labelcurve.training.forecast.advice import DEVIATIONS, Advice, Estimate
from labelcurve.training.forecast.law import Points
from labelcurve.training.forecast.sentences import shown_gain

Scale = Callable[[float], float]

WIDTH, HEIGHT = 760, 380
LEFT, RIGHT, TOP, BOTTOM = 62, 18, 18, 52
STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #626a73; --grid: #d8dde2;
  --line: #1f6fb2; --paper: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #9aa4ae; --grid: #3c444c;
  --line: #6fb6f0; --paper: #14171a; } }
body { margin: 0 auto; max-width: 50rem; padding: 2rem 1.25rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.25; margin: 0 0 1rem; }
svg { width: 100%; height: auto; } svg text { font-size: 13px; fill: var(--soft); }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem .3rem 0; text-align: right; border-bottom: 1px solid var(--grid); }
th:first-child, td:first-child { text-align: left; }
.soft, summary { color: var(--soft); font-size: .875rem; }
"""


def page(
    advice: Advice, points: Points, sentences: Sequence[str], details: Sequence[tuple[str, str]]
) -> str:
    """The whole page.

    Args:
        details: names and values of how it was measured.
    """
    title = f"{counted(advice.more, 'more label')}? {advice.answer.capitalize()}."
    total = advice.n_labels + advice.more
    rows = [_row(f"Accuracy with {advice.n_now:,} labels", advice.accuracy_now)]
    if advice.failed_check is None:
        rows.append(_row(f"Accuracy with {total:,} labels", advice.then))
        gain = advice.gain
        rows.append(_cells("Gain in points", shown_gain(advice), one(gain.low), one(gain.high)))
    said = "".join(f"<p>{escape(sentence)}</p>\n" for sentence in sentences)
    body = f"""<figure style="margin: 0">{plot(advice, points)}
<figcaption class="soft">Points: measured, with 95 % intervals. Line and band: the forecast of a
model's expected accuracy and its 95 % interval; the bar at the right adds the sampling
noise of one draw.</figcaption></figure>
{said}<table><thead><tr><th></th><th>expected</th><th>95 % interval</th></tr></thead>
<tbody>{"".join(rows)}</tbody></table>
{folded("How this was measured", details)}"""
    return html(title, STYLE, body)


def html(title: str, style: str, body: str) -> str:
    """A whole page: one file, no script, the title as its heading."""
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escape(title)}</title><style>{style}</style></head>
<body>
<h1>{escape(title)}</h1>
{body}</body></html>
"""


def folded(heading: str, details: Sequence[tuple[str, str]]) -> str:
    """Names and values below a heading that opens them."""
    rows = "".join(f"<tr><td>{escape(k)}</td><td>{escape(v)}</td></tr>\n" for k, v in details)
    table = f"<table><tbody>\n{rows}</tbody></table>"
    return f"<details><summary>{heading}</summary>{table}</details>\n"


def plot(advice: Advice, points: Points) -> str:
    """The curve as SVG: labels in logarithmic scale, accuracy in percent."""
    failed = advice.failed_check is not None
    line = [(n, e) for n, e in advice.line if not failed or n <= points.sizes[-1]]
    deviation = np.sqrt(np.diag(points.covariance))
    accuracies = 1 - points.errors
    last = advice.accuracy_now if failed else advice.then
    ends = [e.low for _, e in line] + [e.high for _, e in line] + [last.low, last.high]
    ends += [*(accuracies - DEVIATIONS * deviation), *(accuracies + DEVIATIONS * deviation)]
    low, high = max(0.0, min(ends)), min(1.0, max(ends))
    total = advice.n_labels + (0 if failed else advice.more)
    first = float(points.sizes[0])

    def x(n: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * log10(n / first) / log10(total * 1.08 / first)

    def y(accuracy: float) -> float:
        share = (min(max(accuracy, low), high) - low) / (high - low)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    band = [(n, e.high) for n, e in line] + [(n, e.low) for n, e in reversed(line)]
    outline = " ".join(f"{x(n):.1f},{y(a):.1f}" for n, a in band)
    centre = " ".join(f"{x(n):.1f},{y(e.value):.1f}" for n, e in line)
    parts = [_axes(x, y, low, high, first, total, advice.n_labels)]
    parts.append(f'<polygon points="{outline}" fill="var(--line)" opacity=".18"/>')
    parts.append(f'<polyline points="{centre}" fill="none" stroke="var(--line)" stroke-width="2"/>')
    for n, a, d in zip(points.sizes, accuracies, deviation, strict=True):
        parts.append(_bar(x(n), y(a - DEVIATIONS * d), y(a + DEVIATIONS * d), "var(--ink)"))
        parts.append(f'<circle cx="{x(n):.1f}" cy="{y(a):.1f}" r="4" fill="var(--ink)"/>')
    if not failed:
        parts.append(_bar(x(total), y(last.low), y(last.high), "var(--line)"))
        centre_y = y(last.value)
        parts.append(f'<circle cx="{x(total):.1f}" cy="{centre_y:.1f}" r="5" fill="var(--line)"/>')
    said = f"Accuracy over labels: {accuracies[-1] * 100:.1f} % measured"
    said += "" if failed else f", {last.value * 100:.1f} % forecast at {total:,} labels"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(said)}">'
        f"{''.join(parts)}</svg>"
    )


def _axes(
    x: Scale, y: Scale, low: float, high: float, first: float, total: int, n_labels: int
) -> str:
    found = []
    step = next(s for s in (1, 2, 5, 10, 20) if (high - low) * 100 / s <= 7)
    for tick in range(int(np.ceil(low * 100 / step)) * step, int(high * 100) + 1, step):
        place = y(tick / 100)
        found.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place:.1f}" y2="{place:.1f}" '
            f'stroke="var(--grid)"/><text x="{LEFT - 8}" y="{place + 4:.1f}" '
            f'text-anchor="end">{tick} %</text>'
        )
    ticks = {n_labels, total}
    grown = [t * 10**k for k in range(9) for t in (1, 2, 5)]
    ticks.update(
        t for t in grown if first <= t < total and all(abs(x(t) - x(n)) > 45 for n in ticks)
    )
    base = HEIGHT - BOTTOM + 18
    found += [
        f'<text x="{x(t):.1f}" y="{base}" text-anchor="middle">{t:,}</text>' for t in sorted(ticks)
    ]
    now = x(n_labels)
    found.append(
        f'<line x1="{now:.1f}" x2="{now:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" '
        'stroke="var(--soft)" stroke-dasharray="4 4"/>'
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{base + 22}" text-anchor="middle">labels '
        "(dashed: those there are)</text>"
    )
    return "".join(found)


def _bar(x: float, low: float, high: float, colour: str) -> str:
    return (
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="{colour}" '
        'stroke-width="1.5"/>'
    )


def _row(name: str, estimate: Estimate) -> str:
    value, low, high = (one(v * 100) for v in (estimate.value, estimate.low, estimate.high))
    return _cells(name, value, low, high, " %")


def _cells(name: str, value: str, low: str, high: str, unit: str = "") -> str:
    return f"<tr><td>{escape(name)}</td><td>{value}{unit}</td><td>{low} to {high}{unit}</td></tr>"
