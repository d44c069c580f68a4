"""The study of the recipe: fractions, seeds, the reference experiment, and what each part is worth.

`python -m benchmarks.study` trains the rows that are missing, most telling first, and writes
`benchmarks/results/study.json` after each. A row is one bundle; those that lie in `--models`
already, made by `train` or by an earlier call, are read and not trained again, so the study can be
spread over days and machines. Nothing is chosen by its test accuracies. Training code is imported
here and in `benchmarks/speed.py`, nowhere else in `benchmarks`.
"""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic import ValidationError

from benchmarks import rows as study_rows
from benchmarks.record import Report
from benchmarks.rows import Row, Study
from bundle import files, store
from bundle.errors import LabelcurveError
from bundle.manifest import SHARED, Manifest
from training.options import Options
from training.recipes import recipe

RESULT = Path(__file__).with_name("results") / "study.json"

say = partial(print, flush=True)


@dataclass(frozen=True)
class Variant:
    """One way to train."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """Of `train`."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Of the recipe, for what `train` has no option."""


VARIANTS: Mapping[str, Variant] = {
    "default": Variant(),
    "scratch": Variant({"extractor": "none"}),
    "reference": Variant({"preset": "reference"}),
    "reference-scratch": Variant({"preset": "reference", "extractor": "none"}),
    "no-unlabelled": Variant({"no_unlabelled": True}),
    # As in the recipe of before (docs/log.md, 2026-11-23), which was tuned for another network.
    "no-muon": Variant(changes={"optimizer": "sgd", "lr": 0.1, "weight_decay": 1e-3}),
    "no-ema": Variant(changes={"ema": 0.0}),
    "no-label-smoothing": Variant(changes={"label_smoothing": 0.0}),
    "no-cutout": Variant(changes={"cutout": 0}),
    "no-crop": Variant(changes={"crop": 0}),
    "no-flip": Variant(changes={"flip": False}),
}
"""By the name that a bundle has for it."""

ABLATIONS = tuple(name for name in VARIANTS if name.startswith("no-"))


@dataclass(frozen=True, order=True)
class Place:
    """A row of the study, trained or not."""

    variant: str
    fraction: float
    seed: int = 0

    def bundle(self, dataset: str) -> str:
        """The name of its bundle."""
        middle = "" if self.variant == "default" else f"{self.variant}-"
        return f"{dataset}-{middle}{self.fraction * 100:.6g}{f'-s{self.seed}' * (self.seed > 0)}"


PLAN = (
    *(Place("default", 0.1, seed) for seed in range(3)),
    Place("default", 0.5),
    Place("default", 1.0),
    *(Place("scratch", fraction) for fraction in (0.1, 0.5, 1.0)),
    *(Place("reference", fraction) for fraction in (0.1, 0.5, 1.0)),
    *(Place("reference-scratch", fraction) for fraction in (0.1, 0.5, 1.0)),
    *(Place("default", fraction) for fraction in (0.05, 0.2, 0.3)),
    *(Place(name, 0.1) for name in ABLATIONS),
    *(Place("default", fraction, seed) for seed in (1, 2) for fraction in (0.05, 0.2, 0.5, 1.0)),
)
"""All rows, in the order in which they are trained."""


@dataclass
class Arguments:
    """Trains the rows of the study that are missing, and collects all of them."""

    data: str = "cifar10"
    """As for `train`."""
    name: str = "cifar10"
    """First part of the bundles' names."""
    models: Path = Path("runs/study/models")
    """Folder of the bundles: what lies there already is not trained again."""
    out: Path = RESULT
    """The JSON file; rows of earlier calls stay in it."""
    only: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Only this variant; may be repeated."""
    fraction: Annotated[tuple[float, ...], tyro.conf.UseAppendAction] = ()
    """Only this fraction; may be repeated."""
    minutes: float | None = None
    """Begin no row after so many minutes."""
    collect: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Train nothing: read the bundles, write the file, and list what is missing."""
    report: Path | None = None
    """A report.json of `bench`: its models of the default and the reference preset become rows."""
    shared: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Other work runs on this machine: seconds are recorded as such, and no table shows them."""
    cache: Path | None = None
    """As for `train`."""

    def __post_init__(self) -> None:
        """Checks what no type can say.

        Raises:
            LabelcurveError: names the flag, the value and what is allowed.
        """
        for name in self.only:
            if name not in VARIANTS:
                raise LabelcurveError(f"--only {name}: allowed are {', '.join(VARIANTS)}")
        fractions = sorted({place.fraction for place in PLAN})
        for fraction in self.fraction:
            if fraction not in fractions:
                raise LabelcurveError(
                    f"--fraction {fraction:g}: allowed are {', '.join(map(str, fractions))}"
                )
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise LabelcurveError(f"--minutes {self.minutes:g}: allowed are numbers above 0")


def command(place: Place) -> str:
    """What makes a row again."""
    variant = VARIANTS[place.variant]
    words = ["train", "--fraction", f"{place.fraction:g}"]
    if place.seed:
        words += ["--seed", str(place.seed)]
    if variant.changes:
        words = ["python", "-m", "benchmarks.study", "--only", place.variant]
    for option, value in variant.options.items():
        words.append(f"--{option.replace('_', '-')}")
        if value is not True:
            words.append(str(value))
    return shlex.join(words)


def differs(place: Place, manifest: Manifest) -> str | None:
    """The first field in which a bundle's recipe is not the one that the row is to have."""
    variant = VARIANTS[place.variant]
    plan = recipe(
        variant.options.get("preset", "default"),
        manifest.n_labels_train,
        flip=True,
        unlabelled=place.fraction < 1 and not variant.options.get("no_unlabelled", False),
    )
    wanted = {**asdict(plan), **variant.changes}
    return next((key for key in wanted if manifest.recipe.get(key) != wanted[key]), None)


def collect(options: Arguments, place: Place) -> Row | None:
    """The row of a bundle; None where there is none, or one of another recipe."""
    name = place.bundle(options.name)
    if not (options.models / name / store.CURRENT).exists():
        return None
    bundle = store.read(options.models, name)
    manifest, run = bundle.manifest, store.read_run(bundle.path)
    if other := differs(place, manifest):
        say(f"{name}: not counted, its recipe has another {other}")
        return None
    if manifest.test is None:
        say(f"{name}: not counted, it was trained with --no-test")
        return None
    return Row(
        variant=place.variant,
        fraction=place.fraction,
        seed=place.seed,
        bundle=name,
        version=bundle.version,
        n_labels_train=manifest.n_labels_train,
        n_labels_val=manifest.n_labels_val,
        n_unlabelled=manifest.n_unlabelled,
        extractor=manifest.extractor.objective if manifest.extractor else None,
        accuracy=manifest.test.accuracy,
        f1=manifest.test.f1,
        precision=manifest.test.precision,
        recall=manifest.test.recall,
        n_test=manifest.test.n,
        val_accuracy=manifest.val.accuracy,
        epochs=manifest.epochs,
        best_epoch=manifest.best_epoch,
        train_seconds=run.seconds["train"],
        pretraining_seconds=run.pretraining_seconds,
        shared=options.shared or (run.waited or 0.0) > SHARED,
        hardware=run.hardware,
        arithmetic=manifest.precision.value,
        started=run.started,
        git_commit=run.git_commit or manifest.git_commit,
        packages=manifest.packages,
        command=command(place),
    )


def reported(path: Path, shared: bool) -> dict[Place, Row]:
    """Rows from a report of `bench`, whose bundles need not be here.

    Raises:
        LabelcurveError: it is no such report.
    """
    try:
        report = Report.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise LabelcurveError(f"--report {path}: not a report.json of this release") from error
    rows = {}
    for model in report.models:
        variant = model.variant.replace(" ", "-")
        place = Place(variant, model.fraction, model.seed)
        if model.name != place.bundle(report.dataset.name):  # one with another recipe, maybe
            continue
        rows[place] = Row(
            variant=variant,
            fraction=model.fraction,
            seed=model.seed,
            bundle=model.name,
            version=model.version,
            n_labels_train=model.n_labels_train,
            n_labels_val=model.n_labels_val,
            n_unlabelled=model.n_unlabelled,
            extractor=model.extractor,
            accuracy=model.accuracy.accuracy,
            f1=model.accuracy.f1,
            precision=model.accuracy.precision,
            recall=model.accuracy.recall,
            n_test=model.accuracy.n,
            val_accuracy=model.history[model.best_epoch - 1].val_accuracy,
            epochs=model.epochs,
            best_epoch=model.best_epoch,
            train_seconds=model.train_seconds,
            pretraining_seconds=model.pretraining_seconds,
            shared=shared or model.shared,
            hardware=model.trained_on,
            arithmetic=None,
            started=report.provenance.date,
            git_commit=report.provenance.git_commit,
            packages=report.provenance.packages,
            command=command(place),
        )
    return rows


def train(options: Arguments, place: Place) -> None:
    """Trains one row in this process."""
    from training import job

    variant = VARIANTS[place.variant]
    name = f"{options.name}-{place.variant}" if place.variant in ABLATIONS else options.name
    wanted = Options(
        fraction=(place.fraction,),
        data=options.data,
        out=options.models,
        name=name,
        seed=place.seed,
        cache=options.cache,
        **variant.options,
    )
    job.run(wanted, changes=variant.changes)


def run(options: Arguments, plan: Sequence[Place] = PLAN) -> Study:
    """Trains what is missing and writes the file after each row.

    Raises:
        LabelcurveError: as `train` raises it, or the file is none of this schema.
    """
    began = time.monotonic()
    known = study_rows.read(options.out).rows if options.out.exists() else ()
    rows = {Place(row.variant, row.fraction, row.seed): row for row in known}
    if options.report is not None:
        rows = {**reported(options.report, options.shared), **rows}
    for place in plan:
        found = None if place in rows else collect(options, place)
        if found:
            rows[place] = found
            _write(options.out, rows, plan)
    wanted = [
        place
        for place in plan
        if place not in rows
        and (not options.only or place.variant in options.only)
        and (not options.fraction or place.fraction in options.fraction)
    ]
    if not wanted and (options.only or options.fraction):
        say("nothing is missing of what --only and --fraction name")
    for number, place in enumerate(wanted, 1):
        if options.collect:
            say(f"missing: {command(place)}")
            continue
        if options.minutes is not None and time.monotonic() - began > options.minutes * 60:
            say(f"{options.minutes:g} minutes are over: {len(wanted) - number + 1} rows are left")
            break
        say(f"\n== row {number} of {len(wanted)}: {place.bundle(options.name)}")
        train(options, place)
        row = collect(options, place)
        if row is None:
            raise LabelcurveError(f"{place.bundle(options.name)} was trained and cannot be counted")
        rows[place] = row
        _write(options.out, rows, plan)
    return _write(options.out, rows, plan)


def _write(path: Path, rows: Mapping[Place, Row], plan: Sequence[Place]) -> Study:
    missing = tuple(command(place) for place in plan if place not in rows)
    study = Study(rows=tuple(rows[place] for place in _sorted(rows)), missing=missing)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.replace(path, f"{study.model_dump_json(indent=1)}\n".encode())
    return study


def _sorted(rows: Iterable[Place]) -> list[Place]:
    order = list(VARIANTS)
    return sorted(rows, key=lambda place: (order.index(place.variant), place.fraction, place.seed))


def main(args: Sequence[str] | None = None) -> None:
    """The command `python -m benchmarks.study`."""
    try:
        options = tyro.cli(Arguments, args=args, prog="python -m benchmarks.study")
        study = run(options)
    except LabelcurveError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command goes on with the rows that are missing")
    say("")
    for group in study.groups():
        first = group[0]
        accuracy = study_rows.mean(group, lambda row: row.accuracy)
        say(f"{first.variant:18} {first.fraction:5.0%}  {accuracy:.4f}  n = {len(group)}")
    say(f"{options.out}: {len(study.rows)} rows, {len(study.missing)} missing")


if __name__ == "__main__":
    main()
