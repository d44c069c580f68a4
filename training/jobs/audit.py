"""The run of `audit`, top to bottom: images, embedding, duplicates, labels, table, page."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelcurve.bundle import files
from labelcurve.bundle.errors import LabelcurveError
from labelcurve.bundle.text import counted, duration
from labelcurve.training.audit import duplicates, findings, labels
from labelcurve.training.audit.duplicates import Pairs
from labelcurve.training.audit.findings import Finding, Looked
from labelcurve.training.audit.labels import FOLDS, REPEATS, Effect
from labelcurve.training.audit.page import Shown, page, sentence
from labelcurve.training.data import corrections
from labelcurve.training.data.corrections import Doubt, identity
from labelcurve.training.data.dataset import Data
from labelcurve.training.embedding_options import AuditOptions
from labelcurve.training.extractors import choice, embedded
from labelcurve.training.forecast import head
from labelcurve.training.forecast.head import Rows
from labelcurve.training.runtime.console import Bar, say
from labelcurve.training.runtime.device import check as check_device


@dataclass(frozen=True)
class Audited:
    """Findings of an audit."""

    doubts: list[Doubt]
    found: list[list[Finding]]
    """The findings of the last rows, after the unreadable images."""
    effect: Effect | None
    """None where every image is doubtful, or none."""


def run(options: AuditOptions, start: float | None = None) -> dict[str, Any]:
    """Looks at all labelled images, and writes the table and the page.

    Args:
        start: of the process, by `time.monotonic`; None means now.

    Returns:
        The JSON document for the last line on stdout.

    Raises:
        LabelcurveError: the data, the extractor or the device cannot be used, or the table exists.
    """
    start = time.monotonic() if start is None else start
    if options.out.exists():
        raise LabelcurveError(
            f"--out {options.out} exists, and may have been edited: name another file, or remove it"
        )
    files.check_out(options.out.parent)
    choice.check(options.extractor)
    check_device(options.device)
    images, options = embedded.load_labelled(options, skip_unreadable=True)
    rows = embedded.embed_labelled(options, images)
    images, features = rows.images, np.concatenate(rows.parts)
    audited = audit(images, features, options.data, options.seed)
    counts = corrections.summary(audited.doubts)
    seconds = time.monotonic() - start
    details = [
        ("Data", f"{images.name}, {counted(len(features), 'label')}, {images.size} px"),
        ("Features", rows.source),
        ("Labels", f"out-of-fold probabilities, {FOLDS} folds, {REPEATS} times, linear head"),
        ("Time", f"embedding {duration(rows.seconds)}, all {duration(seconds)}"),
    ]
    shown = _shown(images, audited, options.shown)
    files.write_out(options.out, corrections.write(audited.doubts))
    files.write_out(options.page, page(images.name, counts, shown, audited.effect, details))
    if audited.effect is not None:
        say(sentence(audited.effect))
    say(f"wrote {options.out} and {options.page}, {duration(time.monotonic() - start)}")
    return {
        "audit": str(options.out),
        "page": str(options.page),
        "images": len(features) + len(images.unreadable),
        "doubtful": len(audited.doubts),
        "reasons": counts,
        "first": [
            {name: getattr(doubt, name) for name in corrections.COLUMNS}
            for doubt in audited.doubts[:10]
        ],
        "accuracy": None if audited.effect is None else asdict(audited.effect),
        "seconds": round(seconds, 1),
    }


def audit(images: Data, features: Rows, data: str, seed: int = 0) -> Audited:
    """Finds what is doubtful.

    Args:
        images: all of them labelled.
        features: [N, D] embeddings of the training and then of the test images.
        data: the value of `--data`.
        seed: of the folds.
    """
    n_train, n_classes = len(images.train), len(images.class_names)
    given = np.concatenate([images.train.labels, images.test.labels]).astype(np.int64)
    read = _reader(images)
    digests = np.concatenate([s.digests[:] for s in (images.train, images.test) if len(s)])
    _, first, copies = np.unique(digests, return_index=True, return_inverse=True)
    first.sort()
    with Bar("duplicates") as bar:  # of copies, only one is compared with others
        near = duplicates.near_duplicates(
            features[first], lambda rows: read(first[rows]), bar.update
        )
    pairs = Pairs(first[near.rows], near.similarity)
    looked = Looked(given, np.arange(len(given)) >= n_train, copies, pairs)
    rows = head.standardise(features)
    alike = looked.alike()
    with Bar("labels") as bar:
        scores = labels.scores(rows, given, n_classes, groups=alike, seed=seed, progress=bar.update)
    judged = labels.judge(scores, given)
    found = findings.collect(looked, judged, findings.showing_nothing(len(given), read))
    sure = np.ones(len(given), bool)
    sure[[of[0].row for of in found]] = False
    effect = None
    if found and len(np.unique(given[sure])) == n_classes:
        with Bar("labels without the doubtful images") as bar:
            without = labels.scores(
                rows, given, n_classes, groups=alike, used=sure, seed=seed, progress=bar.update
            )
        effect = labels.effect(scores, without, given, sure)
    return Audited(_doubts(images, found, data), found, effect)


def _reader(images: Data) -> Callable[[NDArray[np.int64]], NDArray[np.uint8]]:
    """Reads pixels by rows of the training and then of the test images."""
    n = len(images.train)

    def read(rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        out = np.empty((len(rows), *images.train.images.shape[1:]), np.uint8)
        train = rows < n
        out[train] = images.train.images[rows[train]]
        out[~train] = images.test.images[rows[~train] - n]
        return out

    return read


def _doubts(images: Data, found: list[list[Finding]], data: str) -> list[Doubt]:
    """The rows of the table."""
    names = images.class_names
    broken = [
        Doubt(
            identity(each.where, data),
            names[each.label] if each.label >= 0 else "",
            "",
            1.0,
            f"unreadable: {each.why}",
        )
        for each in images.unreadable
    ]
    wanted = {of[0].row for of in found} | {
        f.other for of in found for f in of if f.other is not None
    }
    name, label = {}, {}
    for row in wanted:
        split, place = _place(images, row)
        name[row] = identity(split.where(place), data)
        label[row] = names[split.labels[place]]
    doubts = []
    for of in found:
        row = of[0].row
        suggested = next((names[f.suggested] for f in of if f.suggested is not None), "")
        doubts.append(
            Doubt(name[row], label[row], suggested, of[0].score, findings.reason(of, name, label))
        )
    return broken + doubts


def _place(images: Data, row: int) -> tuple[Any, int]:
    n = len(images.train)
    return (images.train, row) if row < n else (images.test, row - n)


def _shown(images: Data, audited: Audited, most: int) -> list[Shown]:
    """The first images of the table, with their pixels."""
    n = len(images.unreadable)
    shown = [Shown(doubt, None) for doubt in audited.doubts[: min(n, most)]]
    for doubt, of in zip(audited.doubts[n:most], audited.found, strict=False):
        other = next((f.other for f in of if f.other is not None), None)
        shown.append(
            Shown(
                doubt, _pixels(images, of[0].row), None if other is None else _pixels(images, other)
            )
        )
    return shown


def _pixels(images: Data, row: int) -> Any:
    split, place = _place(images, row)
    return np.asarray(split.images[place])
