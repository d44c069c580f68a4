"""The options of `bench`, in a module that imports fast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from labelcurve.bundle.command import PerCore, Within, check
from labelcurve.bundle.errors import LabelcurveError
from labelcurve.training.data.formats.split_names import Layout

CLIENTS = (1, 2, 4, 8, 16, 32, 64)
Price = Annotated[float | None, Within(0)]
Targets = Annotated[
    tuple[float, ...],
    tyro.conf.UseAppendAction,
    Within(0, 1, above=True, below=True, note="(0.95 is 95 %)"),
]


@dataclass
class Bench:
    """Measures accuracy, latency and load of every model in a folder, side by side.

    Writes report.html, report.md with plots/, and report.json. Where stdout is not a terminal, and
    with --json, its last line is one JSON document. `bench compare A B` compares two such reports,
    `bench render A` makes its page again, `bench peers` compares the service with others.
    """

    models: Path = Path("models")
    """Folder of bundles, as `labelcurve train --out` wrote it."""
    data: str = "cifar10"
    """Data that the models were trained on: cifar10, digits, or a path as for `train --data`."""
    url: str | None = None
    """A running service over the same models; without it bench starts one and stops it."""
    out: Path = Path("runs/bench")
    """Folder for the report and the service's log."""
    only: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Measure only this model; may be repeated."""
    load: bool = True
    """Run the load test, with one seed of each fraction."""
    users: Annotated[int, Within(1)] = 8
    """Clients of the load test, each of which waits for its answer before it sends again."""
    load_seconds: Annotated[int, Within(1)] = 15
    """Duration of the load test of each model, divided among the rounds."""
    rounds: Annotated[int, Within(1)] = 3
    """Rounds of the load test; the models take turns in each."""
    step_seconds: Annotated[float, Within(0)] = 5.0
    """Duration of each step from one client to saturation, and of each fixed rate; 0 omits them."""
    clients: Annotated[tuple[int, ...], Within(1)] = CLIENTS
    """Numbers of clients of those steps, rising."""
    null: bool = True
    """Also measure a model that does nothing: the overhead of the harness."""
    latency_seconds: Annotated[float, Within(0)] = 20.0
    """Duration of the session latency measurement, all models and batch sizes together; more where
    three rounds of them take longer."""
    threads: Annotated[int, PerCore()] = 1
    """ONNX Runtime's threads in the latency measurement."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device for the latency of a session; accuracy is measured on the CPU, and load on the
    service's device."""
    robustness_images: Annotated[int, Within(0)] = 1000
    """Test images under 15 corruptions (JPEG, blur, noise, size, brightness); 0 for none."""
    target: Targets = ()
    """Forecast the labels that this accuracy needs, e.g. 0.95; may be repeated. By default levels
    near the measured accuracies."""
    price_per_hour: Price = None
    """Price of the serving machine, in any currency, for the cost of a million images."""
    price_per_label: Price = None
    """Price of a label, in any currency, for the cost of further labels."""
    shared: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Mark the training time of this model, since the machine did other work; may be repeated.
    Bundles that recorded this are marked anyway."""
    note: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A note for the top of the report; may be repeated."""
    examples: bool = True
    """Show test images in the HTML report: corrected and broken by more labels, the most confident
    errors, six at random."""
    cache: Path | None = None
    """Folder of downloads, decoded pixels and predictions; by default the user's cache folder."""
    layout: Layout = "auto"
    """As for `train`."""
    label_column: str | None = None
    """As for `train`."""
    skip_unreadable: bool = False
    """Leave unreadable images out and count them."""

    def check(self) -> None:
        """Validates the values.

        Raises:
            LabelcurveError: names the option, the value and what is allowed.
        """
        check(self)
        if 0 < self.step_seconds < 1:
            raise LabelcurveError(
                f"--step-seconds {self.step_seconds:g}: allowed are 1 and more, and 0 to leave the "
                "steps out"
            )
        if not self.clients or list(self.clients) != sorted(set(self.clients)):
            given = " ".join(map(str, self.clients))
            raise LabelcurveError(f"--clients {given}: allowed are rising numbers, as 1 2 4 8")
