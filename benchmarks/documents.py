"""README and docs show what lies in `benchmarks/results/`: their tables and the curves.

`python -m benchmarks.documents` rewrites each file between its markers, and the curves; with
`--check` it only says what is stale, and exits with 1.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from pydantic import ValidationError

from benchmarks import curves, data_tables, rows, service_tables, study_tables
from benchmarks.peers import table as peers_table
from benchmarks.peers.record import Peers, Targets
from benchmarks.record import Report
from bundle.errors import LabelcurveError

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).with_name("results")
CURVES = Path("docs") / "learning-curves.svg"


@dataclass
class Documents:
    """Writes the generated parts of README and docs from benchmarks/results/."""

    check: bool = False
    """Change nothing; exit with 1 when something is stale."""
    root: Path = ROOT
    """The folder of README.md and docs/."""
    results: Path = RESULTS
    """The folder of cifar10.json, study.json, reference.json and, if there is one, speed.json."""


def tables(results: Path) -> dict[tuple[str, str], str]:
    """What stands between the markers, by file and by the name of the markers.

    Raises:
        LabelcurveError: a result is missing, or does not follow its schema.
    """
    study, reference = rows.read(results / "study.json"), _json(results / "reference.json")
    path = results / "cifar10.json"
    try:
        report = Report.model_validate_json(path.read_bytes())
    except OSError as error:
        raise LabelcurveError(f"cannot read {path}: {error.strerror}") from error
    except ValidationError as error:
        raise LabelcurveError(f"{path} is no report.json of this release: {error}") from error
    speed = results / "speed.json"
    return {
        ("README.md", "results"): study_tables.opening(report, study, reference),
        ("docs/reference.md", "experiment"): study_tables.experiment(study, reference),
        ("README.md", "service"): service_tables.markdown(
            *(
                _json(results / "service" / f"{name}.json")
                for name in ("swaps", "restarts", "overload", "soak", "fuzz", "guided")
            )
        ),
        **_speed(results),
        **_data(results),
        ("docs/results.md", "study"): study_tables.results(
            study, _json(speed) if speed.exists() else None
        ),
    }


def _speed(results: Path) -> dict[tuple[str, str], str]:
    """The tables of docs/speed.md, where `bench peers` and the targets have been measured."""
    peers, targets = results / "peers.json", results / "targets.json"
    if not (peers.exists() and targets.exists()):
        return {}
    try:
        beside = Peers.model_validate_json(peers.read_bytes())
        alone = Targets.model_validate_json(targets.read_bytes())
    except ValidationError as error:
        raise LabelcurveError(f"peers.json or targets.json in {results}: {error}") from error
    return {
        ("docs/speed.md", "peers"): peers_table.markdown(beside),
        ("docs/speed.md", "targets"): peers_table.targets(alone, beside),
    }


def _data(results: Path) -> dict[tuple[str, str], str]:
    """The tables of how training runs, of what has been measured."""
    made = {
        "decoding": ("docs/scale.md", data_tables.decoding),
        "streaming": ("docs/scale.md", data_tables.streaming),
        "cluster": ("docs/scale.md", data_tables.cluster),
        "interruptions": ("docs/operating-training.md", data_tables.interruptions),
    }
    return {
        (document, name): table(_json(path))
        for name, (document, table) in made.items()
        if (path := results / f"{name}.json").exists()
    }


def _json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise LabelcurveError(f"cannot read {path}: {error}") from error
    return found


def splice(text: str, name: str, table: str) -> str:
    """`text` with `table` between the markers `<!-- NAME:begin -->` and `<!-- NAME:end -->`.

    Raises:
        LabelcurveError: the markers are not there, once each and in order.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise LabelcurveError(f"the lines {begin} and {end} are needed, once each and in order")
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    return f"{head}{begin}\n{table.rstrip()}\n{end}{tail}"


def run(options: Documents) -> list[Path]:
    """Writes what is stale, or only finds it; returns the paths.

    Raises:
        LabelcurveError: a result or a marker is missing.
    """
    stale = []
    for (file, name), table in tables(options.results).items():
        path = options.root / file
        before = path.read_text()
        after = splice(before, name, table)
        if before != after:
            stale.append(path)
            if not options.check:
                path.write_text(after)
    study = rows.read(options.results / "study.json")
    reference = _json(options.results / "reference.json")
    path = options.root / CURVES
    # By what it was drawn from: another release of matplotlib draws other bytes.
    if not path.exists() or curves.key(study, reference) not in path.read_text():
        stale.append(path)
        if not options.check:
            path.write_text(curves.draw(study, reference))
    return stale


def main(args: Sequence[str] | None = None) -> None:
    """The command `python -m benchmarks.documents`."""
    options = tyro.cli(Documents, args=args, prog="python -m benchmarks.documents")
    try:
        stale = run(options)
    except (LabelcurveError, OSError) as error:
        sys.exit(f"error: {error}")
    if stale and options.check:
        names = ", ".join(str(path) for path in stale)
        sys.exit(f"error: {names} stale: run `make tables`")
    for path in stale:
        print(f"{path}: written")


if __name__ == "__main__":
    main()
