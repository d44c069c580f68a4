"""The run of `suggest`, top to bottom: pool, features, choice, table, links, gallery."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from labelcurve.bundle import files, store
from labelcurve.bundle.errors import DataError, LabelcurveError
from labelcurve.bundle.text import counted, duration, shown
from labelcurve.training.data import dataset
from labelcurve.training.data.source import UNLABELLED, Index
from labelcurve.training.data.sources import Selection
from labelcurve.training.data.split import Split
from labelcurve.training.embedding_options import SuggestOptions
from labelcurve.training.extractors import choice, embedded
from labelcurve.training.jobs import suggestions
from labelcurve.training.jobs.suggestions import Suggestion
from labelcurve.training.learning import selection
from labelcurve.training.learning.selection import Rows
from labelcurve.training.models import export
from labelcurve.training.models.linear_head import fit_linear
from labelcurve.training.runtime.console import Bar, say
from labelcurve.training.runtime.device import check as check_device
from labelcurve.training.runtime.device import choose

WORDS = {
    "typical": "typical of images that have no label yet",
    "unsure": "what a classifier on the labels is least sure of, one of each kind",
}


@dataclass(frozen=True)
class _Known:
    """The images, and what is known of them."""

    split: Split
    features: Rows
    """[N, D]"""
    probabilities: NDArray[np.float32] | None
    """[N, K]; None without labels."""
    class_names: tuple[str, ...]
    labelled: Index
    pool: Index
    n_labels: int
    """Number of labels from which the probabilities were learned."""


def run(options: SuggestOptions, start: float | None = None) -> dict[str, Any]:
    """Chooses images and writes them to a new folder.

    Args:
        start: of the process, by `time.monotonic`; None means now.

    Returns:
        The JSON document for the last line on stdout.

    Raises:
        LabelcurveError: the pool, the labels or the models cannot be used, or the folder exists.
    """
    start = time.monotonic() if start is None else start
    if options.out.exists():
        raise LabelcurveError(
            f"--out {options.out} exists, and labels may be in it: name a new folder"
        )
    if shown(options.out.absolute()) != str(options.out.absolute()):
        raise LabelcurveError(
            f"--out {shown(options.out)}: the table would have to hold a path that is not UTF-8 or "
            "has line breaks in it: name another folder"
        )
    if not options.pool.is_dir():
        raise DataError(f"--pool {options.pool}: no such folder; name one of images without labels")
    files.check_out(options.out.parent)
    choice.check(options.extractor)
    check_device(options.device)
    _report_not_used(options)
    known = _by_model(options) if options.models else _by_labels(options)
    if not len(known.pool):
        raise DataError(f"--pool {options.pool}: each of its images has a label already")
    size = len(known.class_names), len(known.pool)
    strategy = selection.strategy(known.n_labels, *size, options.n)
    if options.n >= len(known.pool):
        say(f"--n {options.n:,}: the pool has {len(known.pool):,} without a label, so all of them")
    elif strategy == "random":
        say(
            f"random is as good here: with more than {selection.MANY} labels a class, or a pool of "
            f"less than {selection.FEWEST} times --n, no choice was measured to be better"
        )
    found = _choose(known, strategy, options.n, options.seed)
    suggestions.write(options.out, found, known.split, known.class_names)
    n_random = sum(s.random for s in found)
    of_each = f"{n_random:,} at random (for a test)"
    if n_random < len(found):
        of_each = f"{len(found) - n_random:,} {WORDS[strategy]}, {of_each}"
    say(
        f"{counted(len(found), 'image')} of {len(known.pool):,} without a label: {of_each}\n"
        f"wrote {options.out / suggestions.TABLE}, {options.out / suggestions.PAGE}, "
        f"{duration(time.monotonic() - start)}"
    )
    return {
        "out": str(options.out),
        "strategy": strategy,
        "n": len(found),
        "n_random": n_random,
        "n_pool": len(known.pool),
        "n_labels": known.n_labels,
    }


def _report_not_used(options: SuggestOptions) -> None:
    """Says which of the given options change nothing."""
    model, unlabelled = bool(options.models), options.data is None
    for option, given, why in (
        ("--extractor", model and options.extractor != "auto", "the model has its own features"),
        ("--image-size", model and options.image_size is not None, "the model has its own size"),
        ("--no-flip", model and options.no_flip, "no extractor is trained"),
        ("--layout", unlabelled and options.layout != "auto", "it is of --data"),
        ("--label-column", unlabelled and options.label_column is not None, "it is of --data"),
    ):
        if given:
            say(f"{option} is not used: {why}")


def _selection(options: SuggestOptions) -> Selection:
    """The pool, beside the labelled images where there are some."""
    if options.data is None:
        return Selection(str(options.pool), labelled=False)
    columns = options.layout, options.label_column
    return Selection(options.data, *columns, options.pool, option="--pool")


def _by_labels(options: SuggestOptions) -> _Known:
    """With features of an extractor, and a classifier on the labels where there are some."""
    images, options = embedded.load(_selection(options), options, options.skip_unreadable)
    device = choose(options.device)
    extractor = embedded.obtain(options, images, device, flip=options.data != "digits")
    found, test = embedded.embedding(images, extractor, options.extractor, device, options.cache)
    labels = images.train.labels
    labelled, pool = np.flatnonzero(labels != UNLABELLED), np.flatnonzero(labels == UNLABELLED)
    probabilities, n_labels, names = None, 0, images.class_names
    if options.data is None:
        names = ()
    else:
        learned, truth = found[labelled], labels[labelled]
        if not images.test_given:  # nothing is tested here: these are labels like any other
            learned = np.concatenate([learned, test])
            truth = np.concatenate([truth, images.test.labels])
        n_labels = len(truth)
        logits = fit_linear(learned, truth, len(names), seed=options.seed).logits(found)
        probabilities = softmax(logits, axis=1)
    return _Known(images.train, found, probabilities, names, labelled, pool, n_labels)


def _by_model(options: SuggestOptions) -> _Known:
    """With the embedding and the probabilities of a published model."""
    assert options.models is not None
    bundles = store.read_all(options.models)
    bundle = max(bundles, key=lambda b: b.manifest.n_labels)
    manifest = bundle.manifest
    say(f"model: {bundle.name}@{bundle.version}, {manifest.n_labels:,} labels")
    if options.data is None:
        say("which images have a label already is not known: --data LABELS leaves them out")
    images = dataset.load(
        _selection(options),
        size=manifest.preprocessing.size,
        cache=options.cache,
        skip_unreadable=options.skip_unreadable,
        say=say,
    )
    runtime = export.session(bundle.graph)
    parts, n = [], len(images.train)
    step = min(64, max(1, 64 * 64**2 // images.size**2))
    with Bar("embedding") as bar:
        for first in range(0, n, step):
            pixels = np.ascontiguousarray(images.train.images[first : first + step])
            parts.append(runtime.run(["embedding", "probabilities"], {"images": pixels}))
            bar.update(min(n, first + step) / n)
    features, probabilities = (np.concatenate(part) for part in zip(*parts, strict=True))
    return _Known(
        split=images.train,
        features=features,
        probabilities=probabilities,
        class_names=manifest.class_names,
        labelled=np.flatnonzero(images.train.labels != UNLABELLED),
        pool=np.flatnonzero(images.train.labels == UNLABELLED),
        n_labels=manifest.n_labels,
    )


def _choose(known: _Known, strategy: selection.Strategy, n: int, seed: int) -> list[Suggestion]:
    """Chosen images first, then the random share."""
    random = np.random.default_rng(seed)
    pool = random.permutation(known.pool)
    n = min(n, len(pool))
    aside = n if strategy == "random" else round(n * selection.RANDOM)
    drawn, rest = pool[:aside], np.sort(pool[aside:][: selection.MOST])
    if len(pool) - aside > len(rest):
        say(f"{len(rest):,} images of the pool, drawn at random, are looked at")
    chosen: Index = np.zeros(0, np.int64)
    if n > aside:
        rows = np.concatenate([known.labelled, rest])
        unit, place = selection.unit(known.features[rows]), np.arange(len(rows))
        labelled, left = place[: len(known.labelled)], place[len(known.labelled) :]
        if strategy == "typical" or known.probabilities is None:
            at = selection.typical(unit, labelled, left, n - aside, seed)
        else:
            at = selection.unsure(unit, known.probabilities[rows], left, n - aside, seed)
        chosen = rows[at]
    return [
        Suggestion(
            row=int(row),
            random=i >= len(chosen),
            reason="random" if i >= len(chosen) else strategy,
            probabilities=None if known.probabilities is None else known.probabilities[row],
        )
        for i, row in enumerate(np.concatenate([chosen, drawn]))
    ]
