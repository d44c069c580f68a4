"""`models`: lists, promotes, rolls back and removes the models of a folder."""

from __future__ import annotations

import secrets
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from labelcurve.bundle import command, promotion, store
from labelcurve.bundle.errors import BundleError, LabelcurveError, near
from labelcurve.bundle.text import counted, percent


@dataclass(frozen=True)
class List:
    """Lists the models of a folder, their versions, and which is the default."""

    models: Path = Path("models")
    """Folder that `labelcurve train --out` wrote."""


@dataclass(frozen=True)
class Promote:
    """Makes a model the default, which answers requests that name none.

    A running service follows within `serve --watch` seconds.
    """

    model: tyro.conf.Positional[str]
    """NAME, or NAME@VERSION to also make that version the current one."""
    models: Path = Path("models")
    """Folder that `labelcurve train --out` wrote."""


@dataclass(frozen=True)
class Rollback:
    """Makes the previous default the default again, at the version that it had."""

    models: Path = Path("models")
    """Folder that `labelcurve train --out` wrote."""


@dataclass(frozen=True)
class Remove:
    """Deletes a model or one of its versions; never the default."""

    model: tyro.conf.Positional[str]
    """NAME for all of its versions, NAME@VERSION for one that is not its current one."""
    models: Path = Path("models")
    """Folder that `labelcurve train --out` wrote."""
    yes: bool = False
    """Do not ask."""


Action = (
    Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Promote, tyro.conf.subcommand("promote")]
    | Annotated[Rollback, tyro.conf.subcommand("rollback")]
    | Annotated[Remove, tyro.conf.subcommand("remove")]
)


def main(arguments: Sequence[str]) -> None:
    """The entry point of `models`."""
    config = (tyro.conf.FlagCreatePairsOff,)
    action: Any = tyro.cli(
        Action,
        prog="labelcurve models",
        description="Manages the models of a folder: which there are, and which is the default.",
        args=arguments,
        config=config,
    )
    if isinstance(action, List):
        document = describe(action.models)
        command.answer(document, lambda: _show(document))
    elif isinstance(action, Promote):
        name, version = _parts(action.model)
        before, now = promotion.promote(action.models, name, version)
        _answer_change(before, now)
    elif isinstance(action, Rollback):
        before, now, skipped = promotion.rollback(action.models)
        for each in skipped:
            print(f"skipped {each}, which is not there any more", file=sys.stderr)
        _answer_change(before, now)
    else:
        removed = remove(action.models, action.model, action.yes)
        command.answer({"removed": removed}, lambda: print(f"removed {', '.join(removed)}"))


def describe(root: Path) -> dict[str, Any]:
    """Every model of a folder with its versions, newest first, and the default.

    Raises:
        BundleError: the folder cannot be read, or holds no model.
    """
    store.names(root)  # explains a folder without models
    models = []
    labels = {}
    for name, found in store.scan(root).items():
        versions = [_version(root / name / each) for each in found.versions]
        versions.sort(key=lambda each: (each["started"] or "", each["version"]), reverse=True)
        now = next((each for each in versions if each["version"] == found.current), None)
        error = found.error
        if error is None and found.current is None:
            error = f"it has versions and no link `{store.CURRENT}`"
        elif error is None and now is None:
            error = f"the link `{store.CURRENT}` leads to {found.current}, which is not there"
        if now and now["error"] is None:
            labels[name] = _n_labels(now)
        models.append(
            {"name": name, "current": found.current, "versions": versions, "error": error}
        )
    named = promotion.read(root)
    default, reason = (
        promotion.choose(labels, named.default if named else None) if labels else (None, "none")
    )
    return {
        "models": models,
        "default": default,
        "reason": reason,
        "promoted": [each.model_dump() for each in named.promoted] if named else [],
    }


def remove(root: Path, wanted: str, yes: bool = False) -> list[str]:
    """Delete NAME or NAME@VERSION, after asking on a terminal.

    Returns:
        NAME@VERSION of each bundle that was deleted; NAME where there was none.

    Raises:
        LabelcurveError: it is the default, a current version or missing; it was not confirmed; or
            it cannot be read, renamed or deleted.
    """
    name, version = _parts(wanted)
    there = store.scan(root)
    if name not in there:
        raise BundleError(f"no model {name!r} in {root}{near(name, there)}")
    found = there[name]
    if found.error:
        raise BundleError(f"cannot remove {root / name}: {found.error}")
    if version is not None and version not in found.versions:
        raise BundleError(
            f"no version {version!r} of {name}; there are {', '.join(found.versions)}"
        )
    document = describe(root)
    if version is None and name == document["default"]:
        raise LabelcurveError(
            f"{name} is the default ({document['reason']}): promote another model first"
        )
    if version is not None and version == found.current:
        raise LabelcurveError(
            f"{version} is the current version of {name}: promote another version first, or remove "
            f"{name} as a whole"
        )
    versions = found.versions if version is None else (version,)
    removed = [f"{name}@{each}" for each in versions] or [name]
    _confirm(f"Remove {', '.join(removed)} from {root}?", yes)
    folder = root / name if version is None else root / name / version
    # Renamed first: a service never sees a part of it.
    aside = folder.with_name(f".removed-{folder.name}-{secrets.token_hex(4)}")
    try:
        folder.rename(aside)
    except OSError as error:
        raise LabelcurveError(f"cannot remove {folder}: {error.strerror}") from error
    try:
        if aside.is_symlink():  # to files elsewhere, which stay
            aside.unlink()
        else:
            shutil.rmtree(aside)
    except OSError as error:
        raise LabelcurveError(
            f"{wanted} is removed, but {error.filename} cannot be deleted: {error.strerror}. "
            f"Delete {aside} as its owner"
        ) from error
    return removed


def _confirm(question: str, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise LabelcurveError("nothing was removed: confirmation needs a terminal; add --yes")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise LabelcurveError("nothing was removed")


def _parts(wanted: str) -> tuple[str, str | None]:
    name, at, version = wanted.partition("@")
    if not name or name.startswith(".") or "/" in wanted or (at and not version):
        raise LabelcurveError(
            f"{wanted!r}: NAME or NAME@VERSION, as `labelcurve models list` shows"
        )
    return name, version if at else None


def _version(path: Path) -> dict[str, Any]:
    row: dict[str, Any] = {"version": path.name, "started": None, "error": None}
    try:
        manifest = store.read_manifest(path)
    except BundleError as error:
        return {**row, "error": str(error)}
    with suppress(BundleError):  # a copy may lack it
        row["started"] = store.read_run(path).started
    test = manifest.test or manifest.val
    return {
        **row,
        "n_labels_train": manifest.n_labels_train,
        "n_labels_val": manifest.n_labels_val,
        "classes": len(manifest.class_names),
        "accuracy": test.accuracy,
        "split": "test" if manifest.test else "validation",
        "measured": manifest.measured.name if manifest.measured else None,
    }


def _n_labels(version: dict[str, Any]) -> int:
    """Labels that the model was given, as `train` counts them."""
    return int(version["n_labels_train"] + version["n_labels_val"])


def _show(document: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False)
    for header in ("model", "version", "trained", "labels", "classes", "accuracy", ""):
        table.add_column(header, overflow="fold", no_wrap=header == "model")
    for model in document["models"]:
        for version in model["versions"]:
            marks = []
            if version["version"] == model["current"]:
                marks.append("default" if model["name"] == document["default"] else "current")
            cells = [model["name"], version["version"], (version["started"] or "?")[:10]]
            if version["error"]:
                cells += ["", "", "", version["error"]]
            else:
                labels, classes = _n_labels(version), version["classes"]
                of = f" of {version['measured']}" if version["measured"] else ""
                accuracy = f"{percent(version['accuracy'])} ({version['split']}{of})"
                cells += [f"{labels:,}", f"{classes:,}", accuracy, ", ".join(marks)]
            table.add_row(*cells)
        if model["error"]:
            table.add_row(model["name"], "", "", "", "", "", model["error"])
    Console(markup=False).print(table)
    print(f"\ndefault: {document['default']} ({document['reason']})")
    if document["promoted"]:
        print(f"{counted(len(document['promoted']), 'promotion')}, newest first:")
        for each in reversed(document["promoted"]):
            print(f"  {each['time']}  {each['name']}@{each['version']}")


def _answer_change(before: promotion.Promotion, now: promotion.Promotion) -> None:
    document = {"default": now.name, "version": now.version, "before": str(before)}
    command.answer(document, lambda: print(f"the default is {now}; before it was {before}"))
