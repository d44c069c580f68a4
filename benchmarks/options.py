"""The options of `bench`, apart from the work, which takes seconds to import."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Annotated

import tyro

from bundle.errors import LabelcurveError

CLIENTS = (1, 2, 4, 8, 16, 32, 64)


@dataclass
class Bench:
    """Measures accuracy, latency and load of every model in a folder, side by side.

    Writes report.html, report.md with plots/, and report.json. The last line on stdout is one JSON
    document. `bench compare A B` compares two such reports, `bench render A` makes its page again.
    """

    models: Path = Path("models")
    """Folder of bundles, as `train --out` wrote it."""
    data: str = "cifar10"
    """What the models were trained on: cifar10, digits, or a folder as `train --data` takes it."""
    url: str | None = None
    """A running service over the same models; without it bench starts one and stops it."""
    out: Path = Path("runs/bench")
    """Folder for the report and the service's log."""
    only: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Measure only this model; may be repeated."""
    load: bool = True
    """Run the load test, with one seed of each fraction."""
    users: int = 8
    """Clients of the load test, each of which waits for its answer before it sends again."""
    load_seconds: int = 15
    """Load for each model, divided among the rounds."""
    rounds: int = 3
    """Turns of each model in the load test."""
    step_seconds: float = 5.0
    """Length of each step from one client to saturation, and of each fixed rate; 0 leaves them
    out."""
    clients: tuple[int, ...] = CLIENTS
    """Numbers of clients of those steps, rising."""
    null: bool = True
    """Measure a model that does nothing beside the others: what the harness itself costs."""
    latency_seconds: float = 20.0
    """Session latency of all models and batch sizes together."""
    threads: int = 1
    """ONNX Runtime's threads in the latency measurement."""
    robustness_images: int = 1000
    """Test images that are spoilt in 15 ways (JPEG, blur, noise, size, brightness); 0 for none."""
    target: Annotated[tuple[float, ...], tyro.conf.UseAppendAction] = ()
    """An accuracy whose labels are asked for, as 0.95; may be repeated. Without it some are
    chosen."""
    price_per_hour: float | None = None
    """Of the machine that serves, in any currency: the report says what a million images cost."""
    price_per_label: float | None = None
    """In any currency: the report says what the next labels cost."""
    shared: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """This model was trained beside other work: the report marks its training time, as it does for
    those whose bundles tell so themselves; may be repeated."""
    note: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Something to say at the top of the report; may be repeated."""
    examples: bool = True
    """Show test images in the HTML report: mended and broken by labels, the worst, six at
    random."""
    cache: Path | None = None
    """Folder of downloads, decoded pixels and answers; by default the user's cache folder."""
    skip_unreadable: bool = False
    """Leave unreadable images out and count them."""


def check_asked(
    targets: Sequence[float], price_per_hour: float | None, price_per_label: float | None
) -> None:
    """Refuses targets and prices that cannot be meant.

    Raises:
        LabelcurveError: names the option.
    """
    for target in targets:
        if not 0 < target < 1:
            raise LabelcurveError(
                f"--target {target:g}: an accuracy between 0 and 1 is needed, as 0.95"
            )
    for name, price in (("hour", price_per_hour), ("label", price_per_label)):
        if price is not None and not 0 <= price < inf:
            raise LabelcurveError(f"--price-per-{name} {price:g}: at least 0 is needed")
