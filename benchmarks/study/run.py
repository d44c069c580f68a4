"""The study of the recipe: fractions, seeds, the reference experiment, ablations.

`python -m benchmarks.study` trains the missing rows, most informative first, and writes
`benchmarks/results/study.json` after each. A row is one bundle; bundles that are in `--models`
already, from `train` or an earlier call, are not trained again, so the study can be spread over
days and machines. Test accuracies are not used for model selection.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from labelcurve.benchmarks.study import rows as study_rows
from labelcurve.benchmarks.study.rows import Row, Study
from labelcurve.bundle import command, files, store
from labelcurve.bundle.command import Within, check
from labelcurve.bundle.errors import LabelcurveError
from labelcurve.bundle.manifest import SHARED, Manifest
from labelcurve.bundle.store import Bundle
from labelcurve.training.data import dataset
from labelcurve.training.options import Options
from labelcurve.training.recipes import recipe

RESULT = Path(__file__).resolve().parents[1] / "results" / "study.json"

say = partial(print, flush=True)


@dataclass(frozen=True)
class Variant:
    """A way to train."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of `train`."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Changes of the recipe that `train` has no option for."""


VARIANTS: Mapping[str, Variant] = {
    "default": Variant(),
    "scratch": Variant({"extractor": "none"}),
    "reference": Variant({"preset": "reference"}),
    "reference-scratch": Variant({"preset": "reference", "extractor": "none"}),
    # As in the earlier recipe (docs/log.md, 2026-11-23), which was tuned for another network.
    "no-muon": Variant(changes={"optimizer": "sgd", "lr": 0.1, "weight_decay": 1e-3}),
    "no-ema": Variant(changes={"ema": 0.0}),
    "no-label-smoothing": Variant(changes={"label_smoothing": 0.0}),
    "no-crop": Variant(changes={"crop": 0}),
    "no-flip": Variant(changes={"flip": False}),
}
"""Variants by the name in their bundles."""

ABLATIONS = tuple(name for name in VARIANTS if name.startswith("no-"))


@dataclass(frozen=True, order=True)
class Place:
    """A row of the study, trained or not."""

    variant: str
    fraction: float
    seed: int = 0

    def bundle(self, dataset: str) -> str:
        """Name of its bundle."""
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
"""All rows, in order of training."""


@dataclass
class Arguments:
    """Trains the missing rows of the study and collects all of them."""

    data: str = "cifar10"
    """As for `train`."""
    name: str = "cifar10"
    """Prefix of the bundles' names."""
    models: Path = Path("runs/study/models")
    """Folder of the bundles; existing ones are not trained again."""
    out: Path = RESULT
    """JSON file of the rows, to which new ones are added."""
    only: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Only this variant; may be repeated."""
    fraction: Annotated[tuple[float, ...], tyro.conf.UseAppendAction] = ()
    """Only this fraction; may be repeated."""
    minutes: Annotated[float | None, Within(0, above=True)] = None
    """Start no row after this many minutes."""
    collect: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Train nothing: read the bundles, write the file, and list what is missing."""
    shared: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """The machine does other work: training times are marked and not shown in tables."""
    cache: Path | None = None
    """As for `train`."""

    def __post_init__(self) -> None:
        """Validate.

        Raises:
            LabelcurveError: names the flag, the value and what is allowed.
        """
        check(self)
        for name in self.only:
            if name not in VARIANTS:
                raise LabelcurveError(f"--only {name}: allowed are {', '.join(VARIANTS)}")
        fractions = sorted({place.fraction for place in PLAN})
        for fraction in self.fraction:
            if fraction not in fractions:
                raise LabelcurveError(
                    f"--fraction {fraction:g}: allowed are {', '.join(map(str, fractions))}"
                )


def command_of(place: Place) -> str:
    """Build the command that reproduces a row."""
    variant = VARIANTS[place.variant]
    words = ["labelcurve", "train", "--fraction", f"{place.fraction:g}"]
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
    """Name the first field in which a bundle's recipe differs from that of the row."""
    variant = VARIANTS[place.variant]
    plan = recipe(
        variant.options.get("preset", "default"),
        manifest.n_labels_train,
        flip=True,
        unlabelled=False,
    )
    wanted = {**asdict(plan), **variant.changes}
    return next((key for key in wanted if manifest.recipe.get(key) != wanted[key]), None)


def collect(options: Arguments, place: Place) -> Row | None:
    """Read the row of a bundle; None where there is none, or one with another recipe."""
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
    scores = manifest.test.model_dump(include={"accuracy", "f1", "precision", "recall"})
    same = ("n_labels_train", "n_labels_val", "n_unlabelled", "epochs", "best_epoch", "packages")
    return Row(
        **asdict(place),
        **scores,
        **{name: getattr(manifest, name) for name in same},
        bundle=name,
        version=bundle.version,
        extractor=manifest.extractor.objective if manifest.extractor else None,
        mirrored=_mirrored(options, bundle) if manifest.recipe.get("flip") else None,
        n_test=manifest.test.n,
        val_accuracy=manifest.val.accuracy,
        train_seconds=run.seconds["train"],
        pretraining_seconds=run.pretraining_seconds,
        shared=options.shared or (run.waited or 0.0) > SHARED,
        hardware=run.hardware,
        arithmetic=manifest.precision.value,
        started=run.started,
        git_commit=run.git_commit or manifest.git_commit,
        command=command_of(place),
    )


def _mirrored(options: Arguments, bundle: Bundle) -> float:
    """Accuracy on test of the mean logits of an image and its mirror image."""
    from labelcurve.training.models import export

    runtime = export.session(bundle.graph)
    size = bundle.manifest.preprocessing.size
    test = dataset.load(options.data, size=size, cache=options.cache, say=lambda _: None).test
    images = np.asarray(test.images)
    both = (export.probabilities(runtime, part) for part in (images, images[:, :, ::-1]))
    logs = sum(np.log(found.astype(np.float64).clip(1e-30)) for found in both)
    return float((logs.argmax(axis=1) == test.labels).mean())


def train(options: Arguments, place: Place) -> None:
    """Train a row in this process."""
    from labelcurve.training.jobs import train as job

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
    """Train the missing rows and write the file after each.

    Raises:
        LabelcurveError: as `train` raises it, or the file does not follow this schema.
    """
    began = time.monotonic()
    known = study_rows.read(options.out).rows if options.out.exists() else ()
    rows = {Place(row.variant, row.fraction, row.seed): row for row in known}
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
        say("no row of --only and --fraction is missing")
    for number, place in enumerate(wanted, 1):
        if options.collect:
            say(f"missing: {command_of(place)}")
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
    missing = tuple(command_of(place) for place in plan if place not in rows)
    order = list(VARIANTS)
    places = sorted(
        rows, key=lambda place: (order.index(place.variant), place.fraction, place.seed)
    )
    study = Study(rows=tuple(rows[place] for place in places), missing=missing)
    files.write_out(path, f"{study.model_dump_json(indent=1)}\n")
    return study


def main(arguments: Sequence[str]) -> None:
    """The command `python -m benchmarks.study`."""
    options = tyro.cli(Arguments, args=arguments, prog="python -m benchmarks.study")
    try:
        study = run(options)
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command continues with the missing rows")
    say("")
    for group in study.groups():
        first = group[0]
        accuracy = study_rows.mean(group, "accuracy")
        say(f"{first.variant:18} {first.fraction:5.0%}  {accuracy:.4f}  n = {len(group)}")
    say(f"{options.out}: {len(study.rows)} rows, {len(study.missing)} missing")


if __name__ == "__main__":
    command.enter(main, extra="train")
