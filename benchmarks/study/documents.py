"""Write the generated parts of README and docs: tables from `benchmarks/results/`, and the curves.

`python -m benchmarks.study.documents` rewrites each file between its markers; with `--check` it
lists what is stale and exits with 1. The tables are templates in `templates/`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tyro
from matplotlib.figure import Figure

from labelcurve.benchmarks.peers import table as peers_table
from labelcurve.benchmarks.peers.record import Peers, Targets
from labelcurve.benchmarks.record import Report
from labelcurve.benchmarks.report import tables as report_tables
from labelcurve.benchmarks.report import templates
from labelcurve.benchmarks.study import curves, rows
from labelcurve.benchmarks.study.rows import Study
from labelcurve.bundle import command, files
from labelcurve.bundle.errors import LabelcurveError

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
CURVES, EXTRACTORS = Path("docs") / "learning-curves.svg", Path("docs") / "extractors.svg"
NETWORKS = (
    ("the experiment's network", "reference-scratch", "reference"),
    ("Labelcurve", "scratch", "default"),
)
"""Label, variant without and variant with pretraining."""
ABLATIONS = {
    "scratch": "the extractor",
    "no-muon": "Muon (SGD at 0.1 instead)",
    "no-ema": "averaged weights",
    "no-label-smoothing": "label smoothing",
    "no-crop": "random crops",
    "no-flip": "horizontal flips",
}
SERVICE = {
    "swaps": "swaps",
    "restarts": "restarts",
    "overload": "connections",
    "soak": "mixed traffic",
    "fuzz": "corrupted files",
    "guided": "fuzzing",
}
"""Results of `benchmarks.resilience` and what the README calls them."""
OPTIONAL = {
    "docs/guide.md": ("clients",),
    "docs/labelling.md": ("acceptance", "suggest"),
    "docs/labels.md": ("audit",),
    "docs/operating-training.md": ("interruptions",),
    "docs/photos.md": ("photos", "distillation", "propagation"),
    "docs/plan.md": ("backtest", "backtest-unlabelled", "lcdb"),
    "docs/results.md": ("extractors",),
    "docs/scale.md": ("decoding", "streaming", "cluster"),
}
"""Results that a template of the same name shows, where they exist."""

render = partial(templates.render, "labelcurve.benchmarks.study")


@dataclass
class Documents:
    """Writes the generated parts of README and docs from benchmarks/results/."""

    check: bool = False
    """Change nothing; exit with 1 when something is stale."""
    root: Path = ROOT
    """The folder of README.md and docs/."""
    results: Path = RESULTS
    """The folder of the results."""


def tables(results: Path) -> dict[tuple[str, str], str]:
    """Render all tables, by file and name of the markers.

    Raises:
        LabelcurveError: a result is missing or does not follow its schema.
    """
    study, reference = rows.read(results / "study.json"), _json(results / "reference.json")
    path = results / "notebook.json"
    notebook = _json(path)["results"] if path.exists() else []
    published = {row["fraction"]: row["accuracy"] for row in reference["results"]}
    values = {"study": study, "reference": reference, "published": published, **rows.texts()}
    values["notebook"] = notebook
    found = {
        ("README.md", "results"): opening(rows.read_as(results / "cifar10.json", Report), values),
        ("docs/operating.md", "service"): _service(results / "service"),
        ("docs/reference.md", "experiment"): render(
            "experiment",
            networks=NETWORKS,
            worth={
                label: gains for label, *pair in NETWORKS if (gains := rows.worth(study, *pair))
            },
            **values,
        ),
        ("docs/results.md", "study"): render(
            "results", ablations=ABLATIONS, noise=rows.noise(study.group("default", 0.1)), **values
        ),
    }
    if notebook:
        found["docs/reference.md", "notebook"] = render(
            "notebook", results=notebook, published=published
        )
    for document, names in OPTIONAL.items():
        for name in names:
            if (path := results / f"{name}.json").exists():
                found[document, name] = render(name, **_json(path))
    if all((results / f"{name}.json").exists() for name in ("peers", "targets")):
        peers = rows.read_as(results / "peers.json", Peers)
        found["docs/speed.md", "peers"] = peers_table.markdown(peers)
        targets = rows.read_as(results / "targets.json", Targets)
        found["docs/speed.md", "targets"] = peers_table.targets(targets, peers)
    return found


def opening(report: Report, values: Mapping[str, Any]) -> str:
    """Render the table that the README opens with."""
    study: Study = values["study"]
    ours = [row for row in study.rows if row.variant == "default"]
    models = [model for model in report.models if model.variant == "default"]
    return render(
        "opening",
        report=report,
        rows=ours,
        loads={m.fraction: m.load for m in models if m.seed == 0 and m.load and m.load.p50_ms},
        again={model.version for model in models} - {row.version for row in ours},
        learned=report_tables.learned(report),
        served=report_tables.served(report),
        measured=report_tables.measured(report),
        **values,
    )


def _service(folder: Path) -> str:
    found = {name: _json(folder / f"{name}.json") for name in SERVICE}
    cores: dict[int, list[str]] = {}
    for name, result in found.items():
        cores.setdefault(result["provenance"]["cores"], []).append(SERVICE[name])
    path = folder / "files.json"
    return render("service", cores=cores, files=_json(path) if path.exists() else None, **found)


def _json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise LabelcurveError(f"cannot read {path}: {error}") from error
    return found


def splice(text: str, name: str, table: str) -> str:
    """Put `table` between the markers `<!-- NAME:begin -->` and `<!-- NAME:end -->` of `text`.

    Raises:
        LabelcurveError: the markers are not there, once each and in order.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise LabelcurveError(f"the lines {begin} and {end} are needed, once each and in order")
    head, _, rest = text.partition(begin)
    return f"{head}{begin}\n{table.rstrip()}\n{end}{rest.partition(end)[2]}"


def run(options: Documents) -> list[Path]:
    """Rewrite what is stale (with `check`: only find it) and return the paths.

    Raises:
        LabelcurveError: a result or a marker is missing.
    """
    stale: dict[Path, str] = {}
    for (file, name), table in tables(options.results).items():
        path = options.root / file
        before = stale.get(path) or path.read_text()
        if (after := splice(before, name, table)) != before:
            stale[path] = after
    for path, (data, plot) in _plots(options).items():
        # Compared by their input: another release of matplotlib writes different bytes.
        if not path.exists() or curves.key(data) not in path.read_text():
            stale[path] = "" if options.check else curves.draw(data, plot)
    if not options.check:
        for path, text in stale.items():
            files.replace(path, text.encode())
    return list(stale)


def _plots(options: Documents) -> dict[Path, tuple[str, Callable[[Figure], None]]]:
    """The plots by file: the input as text, and the function that fills the figure."""
    study = rows.read(options.results / "study.json")
    reference = _json(options.results / "reference.json")
    text = study.model_dump_json(include={"rows"}) + repr(sorted(reference.items()))
    found: dict[Path, tuple[str, Callable[[Figure], None]]] = {
        options.root / CURVES: (text, partial(curves.learning, study, reference))
    }
    if (path := options.results / "extractors.json").exists():
        made = _json(path)["rows"]
        found[options.root / EXTRACTORS] = (repr(made), partial(curves.pretraining, made))
    return found


def main(arguments: Sequence[str]) -> None:
    """The command `python -m benchmarks.study.documents`."""
    options = tyro.cli(Documents, args=arguments, prog="python -m benchmarks.study.documents")
    stale = run(options)
    if stale and options.check:
        names = ", ".join(str(path) for path in stale)
        raise LabelcurveError(f"{names} stale: run `make tables`")
    for path in stale:
        print(f"{path}: written")


if __name__ == "__main__":
    command.enter(main, extra="bench")
