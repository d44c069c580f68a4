"""Bundles on disk: `ROOT/NAME/VERSION/`, and the link `ROOT/NAME/current`.

A bundle is written to a temporary sibling and renamed into place, then `current` moves: a reader
sees a complete bundle or none. Names that begin with a dot are working files and are never read.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from labelcurve.bundle import files
from labelcurve.bundle.errors import BundleError
from labelcurve.bundle.manifest import PREPROCESSING_VERSION, SCHEMA_VERSION, Manifest, Run

GRAPH, MANIFEST, CARD, RUN = "model.onnx", "manifest.json", "README.md", "run.json"
CURRENT = "current"

_NOT_UTF8 = "its name is not UTF-8"


def variant_file(precision: str) -> str:
    """Name of the graph of a variant: `model.int8.onnx`."""
    return f"model.{precision}.onnx"


@dataclass(frozen=True)
class Bundle:
    """A verified bundle. `graph` and `variants` hold the bytes whose hashes were checked."""

    path: Path
    version: str
    manifest: Manifest
    graph: bytes
    variants: Mapping[str, bytes] = field(default_factory=dict)
    """By precision (`int8`, `fp16`), as `manifest.variants` lists them."""

    @property
    def name(self) -> str:
        """The name under which it was published."""
        return self.manifest.name


def version_of(graph: bytes, manifest: bytes) -> str:
    """The first 12 digits of a SHA-256 over graph and manifest."""
    digest = hashlib.sha256(hashlib.sha256(graph).digest() + hashlib.sha256(manifest).digest())
    return digest.hexdigest()[:12]


def publish(
    root: Path,
    manifest: Manifest,
    graph: bytes,
    card: str,
    run: Run,
    variants: Mapping[str, bytes] | None = None,
) -> Path:
    """Writes a bundle and makes it the current one of its name.

    Args:
        variants: graphs by precision, as `manifest.variants` lists them.

    Returns:
        The bundle's folder. Publishing the same bundle again leaves the one that is there, or
        repairs it where it was damaged.
    """
    manifest_bytes = (manifest.model_dump_json(indent=2) + "\n").encode()
    version = version_of(graph, manifest_bytes)
    folder = root / manifest.name
    final = folder / version
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not _intact(final):
            temporary = Path(tempfile.mkdtemp(prefix=f".{version}-", dir=folder))
            try:
                temporary.chmod(0o755)
                _write(temporary / GRAPH, graph)
                for precision, content in (variants or {}).items():
                    _write(temporary / variant_file(precision), content)
                _write(temporary / MANIFEST, manifest_bytes)
                _write(temporary / CARD, card.encode())
                _write(temporary / RUN, (run.model_dump_json(indent=2) + "\n").encode())
                _sync(temporary)
                _place(temporary, final)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        _link(root, manifest.name, version)
    except OSError as error:
        raise BundleError(
            f"cannot write the bundle {final}: {error.strerror or error}. "
            "Nothing half-written was left: make room and run the same command again, or choose "
            "another folder with --out"
        ) from error
    return final


def point(root: Path, name: str, version: str) -> None:
    """Make `version` the current one of `name`, atomically.

    Raises:
        BundleError: the folder cannot be written.
    """
    try:
        _link(root, name, version)
    except OSError as error:
        raise BundleError(f"cannot write {root / name / CURRENT}: {error.strerror}") from error


def names(root: Path) -> list[str]:
    """Names under `root` that have a current bundle, sorted.

    In a copy that lost every link, the only version of a name is its current one. Folders that
    cannot be read, such as the `lost+found` of a volume, are left out: `scan` says why.

    Raises:
        BundleError: `root` is not a folder, cannot be read, or holds no bundle.
    """
    try:
        if not root.is_dir():
            raise BundleError(
                f"no folder {root}: name the folder that `labelcurve train --out` wrote with "
                "--models"
            )
    except OSError as error:
        raise _cannot_read(root, error.strerror or str(error)) from error
    there = scan(root)
    found = [name for name, each in there.items() if each.current is not None]
    if not found:
        for name, each in there.items():
            if each.error and each.error != _NOT_UTF8:
                raise _cannot_read(root / name, each.error)
        for model in (root.absolute(), root.absolute().parent):
            if (model / CURRENT).is_symlink():
                raise BundleError(
                    f"{root} is one model, and --models names the folder around it: {model.parent}"
                )
        raise BundleError(
            f"no bundle in {root.absolute()}: it should hold NAME/VERSION/{GRAPH} with a link "
            f"NAME/{CURRENT}; `labelcurve train --out {root}` writes one, --models names another "
            "folder"
        )
    return found


def _cannot_read(folder: Path, reason: str) -> BundleError:
    return BundleError(
        f"cannot read the folder {folder}: {reason} for user {os.geteuid()}. "
        "Change its mode, or run as its owner (docker: --user)"
    )


@dataclass(frozen=True)
class Found:
    """Versions and links of one model, without reading the bundles."""

    current: str | None
    """Version that the link `current` points to, or the only one in a copy that lost every link;
    None where there is neither."""
    versions: dict[str, tuple[int, ...]]
    """Versions that have a manifest, each with a stamp that changes when its files are written
    again."""
    error: str | None = None
    """Why the folder cannot be read, such as `lost+found` of a volume; nothing else is known
    then."""


def scan(root: Path) -> dict[str, Found]:
    """Every name under `root` that has a version or a link `current`, sorted.

    Raises:
        BundleError: `root` cannot be read.
    """
    found = _linked(root)
    for name, only in _unlinked(found).items():
        found[name] = Found(only, found[name].versions)
    return found


def _linked(root: Path) -> dict[str, Found]:
    """As `scan`, by the links alone."""
    found = {}
    try:
        for folder in sorted(root.iterdir()):
            if folder.name.startswith(".") or not folder.is_dir():
                continue
            if error := _unreadable(folder):
                found[folder.name] = Found(None, {}, error)
                continue
            link = folder / CURRENT
            current = _legible(link.readlink().name) if link.is_symlink() else None
            versions = {v: _stamp(folder / v) for v in _versions(folder) if v != CURRENT}
            if current is not None or versions:
                found[folder.name] = Found(current, versions)
    except PermissionError as error:
        raise _cannot_read(root, str(error.strerror)) from error
    except OSError as error:
        raise BundleError(f"cannot read the folder {root}: {error.strerror}") from error
    return found


def _legible(name: str) -> str:
    """A name whose bytes outside of UTF-8, which no answer can hold, are replaced."""
    return os.fsencode(name).decode(errors="replace")


def _unreadable(folder: Path) -> str | None:
    """Reason why a folder cannot be listed or searched, or named in an answer; None if it can."""
    if folder.name != _legible(folder.name):
        return _NOT_UTF8
    try:
        if folder.is_dir():
            os.scandir(folder).close()
            (folder / CURRENT).lstat()
    except FileNotFoundError:
        return None
    except OSError as error:
        return error.strerror or str(error)
    return None


def _stamp(folder: Path) -> tuple[int, ...]:
    stamp: list[int] = []
    for name in (GRAPH, MANIFEST):
        try:
            status = (folder / name).stat()
        except OSError:
            stamp.append(0)
        else:
            stamp += (status.st_mtime_ns, status.st_size, status.st_ino)
    return tuple(stamp)


def read(root: Path, name: str, version: str | None = None) -> Bundle:
    """The verified bundle `name`, at `version` or the current one.

    Raises:
        BundleError: missing, damaged, or of a schema or preprocessing that this release lacks.
    """
    path = root / name / (version or _current(root, name))
    try:
        path = path.resolve(strict=True)
        graph = files.read(path / GRAPH)
        manifest_bytes = files.read(path / MANIFEST)
    except PermissionError as error:
        raise BundleError(
            f"cannot read the bundle {error.filename}: {error.strerror} for user {os.geteuid()}. "
            "Change its mode, or run as its owner (docker: --user)"
        ) from error
    except (OSError, RuntimeError) as error:  # the latter is a loop of links, before Python 3.13
        there = [found for found in _versions(root / name) if found != CURRENT]
        why = error.strerror if isinstance(error, OSError) else error
        raise BundleError(
            f"cannot read the bundle {path}: {why}. Versions of {name} there: "
            f"{', '.join(there) or 'none'}; `{CURRENT}` must be a link to one of them"
        ) from error
    found = version_of(graph, manifest_bytes)
    if found != path.name:
        raise BundleError(
            f"the bundle {path} is damaged: its content hashes to {found}; publish it again"
        )
    manifest = _parse(path / MANIFEST, manifest_bytes)
    if manifest.preprocessing.version != PREPROCESSING_VERSION:
        raise BundleError(
            f"{path} was trained with preprocessing {manifest.preprocessing.version}, this "
            f"release computes {PREPROCESSING_VERSION}: train it again, or use an older release"
        )
    if manifest.name != name:
        raise BundleError(f"{path} is named {manifest.name} inside: a bundle cannot be renamed")
    variants = _variants(path, manifest)
    return Bundle(path=path, version=path.name, manifest=manifest, graph=graph, variants=variants)


def read_all(root: Path, only: Sequence[str] | None = None) -> list[Bundle]:
    """The current bundle of every name under `root`, or of those in `only`, fewest labels first."""
    bundles = [read(root, name) for name in (names(root) if only is None else only)]
    return sorted(bundles, key=lambda b: (b.manifest.n_labels, b.name))


def read_manifest(path: Path) -> Manifest:
    """The manifest of the bundle in folder `path`, whose hash is not verified.

    Raises:
        BundleError: it is missing, or does not follow the schema.
    """
    try:
        content = files.read(path / MANIFEST)
    except OSError as error:
        raise BundleError(f"cannot read {path / MANIFEST}: {error.strerror}") from error
    return _parse(path / MANIFEST, content)


def _parse(file: Path, content: bytes) -> Manifest:
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        schema = _schema_of(content)
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise BundleError(
            f"{file} has schema_version {schema}, this release reads {SCHEMA_VERSION}"
            if schema != SCHEMA_VERSION
            else f"{file} does not follow the schema: {where}: {first['msg']}"
        ) from error


def read_run(path: Path) -> Run:
    """The `run.json` of the bundle in folder `path`."""
    try:
        return Run.model_validate_json(files.read(path / RUN))
    except (OSError, ValidationError) as error:
        raise BundleError(f"cannot read {path / RUN}: {error}") from error


def _variants(path: Path, manifest: Manifest) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for variant in manifest.variants:
        file = path / variant_file(variant.precision)
        try:
            found[variant.precision] = files.read(file)
        except OSError as error:
            raise BundleError(f"cannot read {file}: {error.strerror}; publish it again") from error
        if hashlib.sha256(found[variant.precision]).hexdigest() != variant.graph_hash:
            raise BundleError(f"{file} is damaged: its hash differs; publish it again")
    return found


def _unlinked(there: Mapping[str, Found]) -> dict[str, str]:
    """The single version of each model, in a folder in which no model has a link.

    Object stores and BentoML's bentos copy files and leave links out.
    """
    if any(found.current is not None for found in there.values()):
        return {}
    return {
        name: next(iter(found.versions))
        for name, found in there.items()
        if len(found.versions) == 1
    }


def _current(root: Path, name: str) -> str:
    """The folder of the version that is served: the link, or the only one without any link."""
    try:
        linked = (root / name / CURRENT).is_symlink() or not root.is_dir()
    except PermissionError:
        linked = True  # reading it says more
    if linked:
        return CURRENT
    return _unlinked(_linked(root)).get(name, CURRENT)


def _versions(folder: Path) -> list[str]:
    return sorted(_legible(path.parent.name) for path in folder.glob(f"[!.]*/{MANIFEST}"))


def _schema_of(manifest: bytes) -> object:
    try:
        content = json.loads(manifest)
    except ValueError:
        return "none (no JSON)"
    return content.get("schema_version") if isinstance(content, dict) else "none (no object)"


def _intact(folder: Path) -> bool:
    """Returns whether the folder holds a complete bundle of the version in its name."""
    try:
        manifest = files.read(folder / MANIFEST)
        found = version_of(files.read(folder / GRAPH), manifest)
        if found == folder.name:
            _variants(folder, Manifest.model_validate_json(manifest))
    except (OSError, BundleError, ValidationError):
        return False
    return found == folder.name and (folder / CARD).exists() and (folder / RUN).exists()


def _place(temporary: Path, final: Path) -> None:
    """Renames a written bundle into place, replacing a damaged one."""
    try:
        temporary.rename(final)
    except OSError:
        if _intact(final):  # another process published the same bundle in the meantime
            return
        aside = temporary.with_name(f"{temporary.name}-damaged")
        final.rename(aside)
        try:
            temporary.rename(final)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _link(root: Path, name: str, version: str) -> None:
    """Points the link `current` of a model to a version.

    The first link in a folder ends the rule for copies without any (`_unlinked`): the other models
    get theirs before it, or they would not be served any more.
    """
    for other, only in _unlinked(_linked(root)).items():
        if other != name and not (root / other / CURRENT).exists():
            _point(root / other / CURRENT, only)
    _point(root / name / CURRENT, version)
    _sync(root / name)


def _point(link: Path, target: str) -> None:
    temporary = link.with_name(f".{link.name}-{secrets.token_hex(8)}")
    temporary.symlink_to(target)
    try:
        temporary.replace(link)
    except IsADirectoryError as error:
        raise BundleError(
            f"{link} is a folder in place of a link, as a copy that followed links leaves it: "
            "remove it, and run the same command again"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
