"""The report of a run: one page of HTML, Markdown and JSON with the same figures."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup
from PIL import Image

from benchmarks import plots, tables
from benchmarks.accuracy import Predictions
from benchmarks.record import Accuracy, Latency, Load, Model, Report
from bundle import store
from bundle.errors import LabelcurveError
from bundle.preprocess import prepare
from bundle.store import Bundle
from training.data import Data

N_EXAMPLES = 6
_MARKDOWN = MarkdownIt("commonmark", {"html": False})
FILES = {"html": "report.html", "md": "report.md", "json": "report.json"}


@dataclass(frozen=True)
class Example:
    """A test image with its true class and what every model says."""

    row: int
    uri: str
    """The pixels that the models see, as a `data:` URI."""
    truth: str
    answers: tuple[tuple[str, str, bool], ...]
    """Model name, predicted class, whether it is right."""


def model(bundle: Bundle, accuracy: Accuracy, latency: Latency, load: Load | None) -> Model:
    """What is known and was measured of one bundle."""
    manifest, run = bundle.manifest, store.read_run(bundle.path)
    return Model(
        name=bundle.name,
        version=bundle.version,
        dataset=manifest.dataset.name,
        fraction=manifest.fraction,
        n_labels_train=manifest.n_labels_train,
        n_labels_val=manifest.n_labels_val,
        seed=manifest.seed,
        preset=manifest.preset,
        backbone=manifest.backbone,
        n_parameters=manifest.n_parameters,
        size=manifest.preprocessing.size,
        graph_bytes=len(bundle.graph),
        epochs=manifest.epochs,
        best_epoch=manifest.best_epoch,
        extractor=manifest.extractor.objective if manifest.extractor else None,
        n_unlabelled=manifest.n_unlabelled,
        pretraining_seconds=run.pretraining_seconds,
        train_seconds=run.seconds.get("train", 0.0),
        trained_on=run.hardware,
        device=manifest.device,
        history=run.history,
        accuracy=accuracy,
        latency=latency,
        load=load,
    )


def examples(
    bundles: Sequence[Bundle], data: Data, predictions: Mapping[str, Predictions]
) -> list[Example]:
    """Six test images drawn at random (seed 0), whatever the models say of them."""
    n = len(data.test.labels)
    size = max(bundle.manifest.preprocessing.size for bundle in bundles)
    found = []
    for row in np.random.default_rng(0).permutation(n)[:N_EXAMPLES].tolist():
        buffer = BytesIO()
        Image.fromarray(prepare(data.test.read(row), size)).save(buffer, "PNG")
        truth = int(data.test.labels[row])
        answers = []
        for bundle in bundles:
            answer = int(predictions[bundle.name].labels[row])
            answers.append((bundle.name, data.class_names[answer], answer == truth))
        uri = f"data:image/png;base64,{b64encode(buffer.getvalue()).decode()}"
        found.append(Example(row, uri, data.class_names[truth], tuple(answers)))
    return found


def write(out: Path, report: Report, shown: Sequence[Example] = ()) -> dict[str, Path]:
    """Writes the three files into `out`, each beside and then renamed.

    Args:
        out: folder; made when it is missing.
        report: the figures.
        shown: test images for the HTML page; none leaves the pictures out.

    Returns:
        Paths by kind: html, md, json.

    Raises:
        LabelcurveError: a file cannot be written.
    """
    texts = {
        "html": html(report, shown),
        "md": markdown(report),
        "json": report.model_dump_json(indent=2) + "\n",
    }
    paths = {kind: out / name for kind, name in FILES.items()}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for kind, path in paths.items():
            beside = path.with_name(f".{path.name}-{os.getpid()}")
            beside.write_text(texts[kind], encoding="utf-8")
            beside.replace(path)
    except OSError as error:
        raise LabelcurveError(
            f"cannot write the report to {out}: {error.strerror or error}; choose another --out"
        ) from error
    return paths


def html(report: Report, shown: Sequence[Example] = ()) -> str:
    """The page: self-contained, in light and dark."""
    return _render(
        "report.html.j2",
        report,
        shown=shown,
        curve=plots.learning_curve(report),
        history=plots.history(report),
        confusions=plots.confusions(report),
        latency=plots.latency(report),
        colour=plots.colour,
    )


def markdown(report: Report) -> str:
    """The figures without the plots."""
    return _render("report.md.j2", report, markdown=tables.markdown)


def _render(template: str, report: Report, **more: Any) -> str:
    environment = Environment(
        loader=PackageLoader("benchmarks"),
        autoescape=template.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["percent"] = lambda share, digits=2: f"{share * 100:.{digits}f} %"
    environment.filters["ms"] = _ms
    environment.filters["count"] = lambda value: f"{value:,.0f}"
    environment.filters["inline"] = lambda text: Markup(_MARKDOWN.renderInline(text))
    environment.filters["duration"] = tables.duration
    return environment.get_template(template).render(
        report=report,
        models=report.models,
        made=report.provenance,
        header=tables.HEADER,
        rows=tables.rows(report),
        groups=tables.groups(report),
        conditions=tables.conditions(report),
        **more,
    )


def _ms(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"
