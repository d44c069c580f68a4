"""The default model of a folder of bundles, and the promotions that led to it: `ROOT/default.json`.

The default answers requests that name no model. The file is replaced atomically, so a running
service reads the old one or the new one. Written by hand, `{"default": "NAME"}` is enough.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from labelcurve.bundle import files, store
from labelcurve.bundle.errors import BundleError, near

FILE = "default.json"

KEPT = 50
"""Number of promotions in the history."""


class Promotion(BaseModel):
    """A model that was the default, at a version."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    version: str
    time: str
    """When it became the default, or was replaced if never promoted; ISO 8601, UTC."""

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


class Default(BaseModel):
    """The content of `default.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    default: str
    promoted: tuple[Promotion, ...] = ()
    """Oldest first."""


def read(root: Path) -> Default | None:
    """The default that the folder names; None if it names none.

    Raises:
        BundleError: the file cannot be read, or has unexpected content.
    """
    path = root / FILE
    try:
        return Default.model_validate_json(files.read(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise BundleError(
            f'{path}: {where}: {first["msg"]}; expected is {{"default": "NAME"}}, as '
            f"`labelcurve models promote NAME --models {root}` writes it"
        ) from error


def choose(
    labels: Mapping[str, int], named: str | None, only: Sequence[str] = ()
) -> tuple[str, str]:
    """The default among some models, and the reason in words.

    Args:
        labels: number of labels by name of model, at least one.
        named: the default that the folder names.
        only: the models that `serve --model` lists, if it does.
    """
    if named is not None and named in labels:
        return named, f"{FILE} names it"
    missing = f"{FILE} names {named}, which is not among them" if named else f"there is no {FILE}"
    for name in only:
        if name in labels:
            return name, f"the first --model, since {missing}"
    # A compact model exists because it was requested (`train --max-latency`).
    most = min(labels, key=lambda name: (-labels[name], "-compact-" not in name, name))
    equals = sum(n == labels[most] for n in labels.values()) > 1
    which = "is the first of those with the most labels" if equals else "has the most labels"
    return most, f"it {which}, since {missing}"


def find(root: Path, labels: Mapping[str, int], only: Sequence[str] = ()) -> tuple[str, str]:
    """The default of a folder and the reason, as `choose`.

    Raises:
        BundleError: the folder names a default that is not there.
    """
    found = read(root)
    if found and not only and found.default not in labels:
        raise BundleError(
            f"{root / FILE} names {found.default} as the default, which is not among "
            f"{', '.join(labels)}: `labelcurve models promote NAME --models {root}` names another"
        )
    return choose(labels, found.default if found else None, only)


def promote(root: Path, name: str, version: str | None = None) -> tuple[Promotion, Promotion]:
    """Make a model the default, after verifying its bundle.

    Args:
        version: to become its current version; by default that stays as it is.

    Returns:
        What was the default before, and what is now.

    Raises:
        BundleError: the bundle does not exist or is damaged, or the folder is not writable.
    """
    with _locked(root):
        there = store.scan(root)
        names = [each for each, found in there.items() if found.current]
        if name not in there or (version is None and name not in names):
            raise BundleError(f"no model {name!r} in {root}{near(name, names)}")
        bundle = store.read(root, name, version or there[name].current)
        now = Promotion(name=name, version=bundle.version, time=_now())
        found = read(root)
        before = _present(root, found)
        history = [*found.promoted] if found else []
        for each in (before, now):
            if each.version and (not history or str(history[-1]) != str(each)):
                history.append(each)
        if there[name].current != bundle.version:
            store.point(root, name, bundle.version)
        _write(root, name, history)
    return before, now


def rollback(root: Path) -> tuple[Promotion, Promotion, list[str]]:
    """Make the previous default the default again, at the version that it had.

    If the default has a new current version since it was promoted, as after a training, that is the
    version that was promoted; otherwise it is the previous promotion.

    Returns:
        What was the default, what is now, and NAME@VERSION of promotions between the two that were
        skipped because they are no longer in the folder.

    Raises:
        BundleError: there is no previous default, or the folder cannot be written.
    """
    with _locked(root):
        found = read(root)
        before = _present(root, found)
        there = store.scan(root)
        history, skipped = list(found.promoted if found else ()), []
        while history and (
            str(history[-1]) == str(before)
            or history[-1].version not in _versions(there, history[-1].name)
        ):
            if str(last := history.pop()) != str(before):
                skipped.append(str(last))
        if not history:
            raise BundleError(
                f"nothing in {root} was promoted before {before}: `labelcurve models list` shows "
                "the models and their versions, `promote NAME@VERSION` makes one the default"
            )
        now = history[-1]
        store.read(root, now.name, now.version)  # which verifies it
        if there[now.name].current != now.version:
            store.point(root, now.name, now.version)
        _write(root, now.name, history)
    return before, now, skipped


def _present(root: Path, found: Default | None) -> Promotion:
    """The current default, promoted or not."""
    there = store.scan(root)
    name = found.default if found else None
    if name is None:
        labels = {}
        for each, entry in there.items():
            with suppress(BundleError):
                if entry.current:
                    manifest = store.read_manifest(root / each / entry.current)
                    labels[each] = manifest.n_labels
        if not labels:
            raise BundleError(f"no model in {root} can be read")
        name, _ = choose(labels, None)
    current = there[name].current if name in there else None
    return Promotion(name=name, version=current or "", time=_now())


def _versions(there: Mapping[str, store.Found], name: str) -> Mapping[str, tuple[int, ...]]:
    return there[name].versions if name in there else {}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Exclude other promotions, whose entry in the history would be lost."""
    try:
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise BundleError(f"cannot read the folder {root}: {error.strerror}") from error
    try:
        with suppress(OSError):  # some network file systems do not lock folders
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(root: Path, name: str, history: Sequence[Promotion]) -> None:
    content = Default(default=name, promoted=tuple(history[-KEPT:]))
    try:
        files.replace(root / FILE, (content.model_dump_json(indent=2) + "\n").encode())
    except OSError as error:
        raise BundleError(f"cannot write {root / FILE}: {error.strerror}") from error
