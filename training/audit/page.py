"""The page that `audit` writes: the doubtful images in the table's order. One file, no script."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from labelcurve.bundle.text import percent
from labelcurve.training.audit.labels import Effect
from labelcurve.training.data.corrections import Doubt
from labelcurve.training.forecast.page import STYLE, folded, html

SIDE = 112
"""Largest side of a thumbnail, in pixels."""
OWN = """
body { max-width: 72rem; }
ol { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem;
  padding: 0; list-style: none; }
li { border-top: 1px solid var(--grid); padding-top: .6rem; overflow-wrap: anywhere; }
li img { height: 7rem; width: 7rem; object-fit: contain; margin-right: .4rem;
  image-rendering: auto; } li p { margin: .2rem 0; }
"""


@dataclass(frozen=True)
class Shown:
    """One image of the page."""

    doubt: Doubt
    image: NDArray[np.uint8] | None
    """[S, S, 3]; None where it cannot be read."""
    other: NDArray[np.uint8] | None = None
    """The image that it repeats."""


def page(
    name: str,
    counts: dict[str, int],
    shown: Sequence[Shown],
    effect: Effect | None,
    details: Sequence[tuple[str, str]],
) -> str:
    """The whole page.

    Args:
        counts: images of the table by kind of reason.
        shown: the first images of the table.
        details: names and values of how they were found.
    """
    n = sum(counts.values())
    title = f"{n:,} doubtful images in {name}" if n else f"No doubtful image in {name}"
    rows = "".join(f"<tr><td>{escape(k)}</td><td>{v:,}</td></tr>" for k, v in counts.items())
    said = "" if effect is None else f"<p>{escape(sentence(effect))}</p>"
    first = f"<p class='soft'>The first {len(shown):,} of {n:,}; the table has all.</p>"
    head = "<thead><tr><th>reason</th><th>images</th></tr></thead>"
    body = f"""{said}<table>{head}<tbody>{rows}</tbody></table>
{first if len(shown) < n else ""}<ol>
{"".join(map(_item, shown))}</ol>
{folded("How they were found", details)}"""
    return html(title, STYLE + OWN, body)


def sentence(effect: Effect) -> str:
    """The accuracies, in words."""
    with_all, alone = percent(effect.learned_with, 1), percent(effect.learned_without, 1)
    return (
        f"In cross-validation a linear head on frozen features predicts "
        f"{percent(effect.as_it_is, 1)} of all {effect.n:,} labels as they are. Of the "
        f"{effect.n_without:,} that are not in the table it predicts {with_all}, and {alone} "
        "when trained on these alone: the difference between the two is what leaving the doubtful "
        "images out gains; the rest of the rise is there because doubtful images are hard."
    )


def _item(shown: Shown) -> str:
    doubt = shown.doubt
    suggested = f" → <b>{escape(doubt.suggested)}</b>" if doubt.suggested else ""
    pictures = "".join(
        f'<img src="{uri(image)}" alt="{escape(alt)}">'
        for image, alt in ((shown.image, doubt.path), (shown.other, "the image that it repeats"))
        if image is not None
    )
    return (
        f"<li>{pictures}<p><b>{escape(doubt.label or 'no label')}</b>{suggested}</p>"
        f'<p>{escape(doubt.path)}</p><p class="soft">{doubt.score:.2f} · {escape(doubt.reason)}</p>'
        "</li>\n"
    )


def uri(pixels: NDArray[np.uint8]) -> str:
    """A thumbnail as a `data:` URI."""
    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE))
    buffer = BytesIO()
    small = max(image.size) <= 64
    image.save(buffer, "PNG" if small else "JPEG", **({} if small else {"quality": 80}))
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{b64encode(buffer.getvalue()).decode()}"
