"""The files of a report: HTML, Markdown with plots, and JSON, all from one record.

`templates/report.j2` says what a report holds; `templates/html.j2` and `templates/md.j2` say how
its blocks look in either form.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from markdown_it import MarkdownIt
from markupsafe import Markup

from labelcurve.benchmarks.quality.gallery import Gallery
from labelcurve.benchmarks.record import Report
from labelcurve.benchmarks.report import (
    accuracy_plots,
    curve_plots,
    drawing,
    figures,
    serving_plots,
    summary,
    tables,
)
from labelcurve.benchmarks.report.drawing import Draw
from labelcurve.benchmarks.report.templates import environment, flat, ms, tight
from labelcurve.bundle import files
from labelcurve.bundle.errors import LabelcurveError
from labelcurve.bundle.text import bars, counted, escaped

_MARKDOWN = MarkdownIt("commonmark", {"html": False})
FILES = {"html": "report.html", "md": "report.md", "json": "report.json"}
PLOTS = "plots"
APPENDIX = "\N{BELL}"
"""Separates the first page of a report from its appendix, in the template."""
DRAWN: Mapping[str, Draw] = {
    "curve": curve_plots.learning_curve,
    "times": curve_plots.times,
    "history": curve_plots.history,
    "classes": accuracy_plots.classes,
    "confusions": accuracy_plots.confusions,
    "reliability": accuracy_plots.reliability,
    "accepting": accuracy_plots.accepting,
    "robustness": accuracy_plots.robustness,
    "latency": serving_plots.latency,
    "stages": serving_plots.stages,
    "saturation": serving_plots.saturation,
}
"""Plots by the name of their file."""


def write(out: Path, report: Report, shown: Sequence[Gallery] = ()) -> dict[str, Path]:
    """Write report.html, report.md, report.json and plots/ to a folder, each file atomically.

    Returns:
        Paths by kind: html, md, json.

    Raises:
        LabelcurveError: a file cannot be written.
    """
    try:
        # Before the plots are drawn, which takes seconds.
        (out / PLOTS).mkdir(parents=True, exist_ok=True)
        for name in FILES.values():
            if (out / name).is_dir():
                raise IsADirectoryError(errno.EISDIR, f"{name} is a folder there")
        # Rendered completely first: an interruption must not leave a mix of this report and an
        # earlier one.
        contents = dict(_contents(out, report, shown))
        for path, content in contents.items():
            files.replace(path, content)
        stale = set((out / PLOTS).glob("*.png")) - contents.keys()
        for path in stale:  # of an earlier report with more plots
            path.unlink()
    except OSError as error:
        raise LabelcurveError(
            f"cannot write the report to {out}: {error.strerror or error}; choose another --out"
        ) from error
    return {kind: out / name for kind, name in FILES.items()}


def _contents(out: Path, report: Report, shown: Sequence[Gallery]) -> Iterator[tuple[Path, bytes]]:
    yield out / FILES["json"], (report.model_dump_json(indent=1) + "\n").encode()
    text = markdown(report)
    for name in re.findall(rf"\({PLOTS}/(\w+)\.png\)", text):
        yield out / PLOTS / f"{name}.png", drawing.png(DRAWN[name], report)
    yield out / FILES["md"], text.encode()
    yield out / FILES["html"], html(report, shown).encode()


def html(report: Report, shown: Sequence[Gallery] = ()) -> str:
    """Render the page: self-contained, for light, dark, narrow screens and paper."""
    return _rendered("html", report, shown)


def markdown(report: Report) -> str:
    """Render the same figures as Markdown; the plots are separate files."""
    return re.sub(r"\n{3,}", "\n\n", _rendered("md", report)).rstrip() + "\n"


def _rendered(form: Literal["html", "md"], report: Report, shown: Sequence[Gallery] = ()) -> str:
    found = environment("labelcurve.benchmarks.report", autoescape=form == "html")
    found.filters |= {
        "inline": lambda text: Markup(_MARKDOWN.renderInline(flat(text))),
        "tight": lambda text: Markup(tight(text)) if form == "html" else tight(text),
        "cells": _cells,
        "anchor": lambda text: text.lower().replace(" ", "-"),
        "svg": lambda name, title: Markup(drawing.svg(DRAWN[name], report, title)),
        "colour": lambda model: drawing.colour(report, model),
        "drop": figures.drop,
        "stage": lambda stage: f"{ms(stage.p50_ms)} / {ms(stage.p99_ms)}",
        "hours": figures.per_million,
        "unstable": tables.unstable,
        "training_time": tables.training_time,
    }
    body = found.get_template("report.j2").render(format=form, **_values(report), galleries=shown)
    first, rest = (Markup(part) if form == "html" else part for part in body.split(APPENDIX))
    name = report.dataset.name
    return found.get_template(f"page.{form}.j2").render(
        report=report,
        title=f"What labels buy on {name if form == 'html' else escaped(name)}",
        subtitle=subtitle(report),
        headings=re.findall(r"<h2>(.*?)</h2>", rest),
        first=first,
        rest=rest,
    )


def _values(report: Report) -> dict[str, Any]:
    return {
        "report": report,
        "APPENDIX": APPENDIX,
        "models": tables.main_models(report),
        "with_epochs": [model for model in tables.main_models(report) if model.history],
        "variant": tables.variants(report)[0],
        "SHARED": tables.SHARED,
        "header": tables.HEADER,
        "rows": tables.rows(report),
        "conditions": tables.conditions(report),
        "pretraining_times": tables.pretraining_times(report),
        "answer": summary.answer(report),
        "opening": tables.opening(report),
        "findings": summary.findings(report),
        "classes": figures.classes(report),
        "confused": figures.confused(report),
        "accepted": figures.accepted(report),
        "loads": figures.loads(report),
        "latencies": figures.latencies(report),
        "reference": figures.reference(report),
    }


def _cells(row: Sequence[object], names: int) -> list[str]:
    """Cells of a row of Markdown; the first `names` are names from outside, which are escaped."""
    return [bars(escaped(str(c)) if i < names else str(c)) for i, c in enumerate(row)]


def subtitle(report: Report) -> str:
    """Classes, test images, date, machine."""
    made = report.provenance
    return (
        f"{len(report.dataset.class_names)} classes, "
        f"{counted(report.dataset.n_test, 'test image')} · "
        f"{counted(len(report.models), 'model')} · {made.date[:10]} · "
        f"{made.cpu}, {counted(made.cores, 'core')}{f', {made.gpu}' if made.gpu else ''}"
    )
