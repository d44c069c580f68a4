"""Bundles on disk: `ROOT/NAME/VERSION/`, and the link `ROOT/NAME/current`.

A bundle is written beside and renamed into place, then `current` moves: a reader sees a whole
bundle or none. Names that begin with a dot are working files and are never read.
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

from bundle.errors import BundleError
from bundle.manifest import PREPROCESSING_VERSION, SCHEMA_VERSION, Manifest, Run

GRAPH, MANIFEST, CARD, RUN = "model.onnx", "manifest.json", "README.md", "run.json"
CURRENT = "current"


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
        mends it where it was damaged.
    """
    manifest_bytes = (manifest.model_dump_json(indent=2) + "\n").encode()
    version = version_of(graph, manifest_bytes)
    folder = root / manifest.name
    final = folder / version
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not _intact(final):
            beside = Path(tempfile.mkdtemp(prefix=f".{version}-", dir=folder))
            try:
                beside.chmod(0o755)
                _write(beside / GRAPH, graph)
                for precision, content in (variants or {}).items():
                    _write(beside / variant_file(precision), content)
                _write(beside / MANIFEST, manifest_bytes)
                _write(beside / CARD, card.encode())
                _write(beside / RUN, (run.model_dump_json(indent=2) + "\n").encode())
                _sync(beside)
                _place(beside, final)
            finally:
                shutil.rmtree(beside, ignore_errors=True)
        _point(folder / CURRENT, version)
        _sync(folder)
    except OSError as error:
        raise BundleError(
            f"cannot write the bundle {final}: {error.strerror or error}. "
            "Nothing half-written was left: make room and give the same command again, or choose "
            "another folder with --out"
        ) from error
    return final


def names(root: Path) -> list[str]:
    """Names under `root` that have a current bundle, sorted.

    In a copy that lost every link, the only version of a name is its current one.

    Raises:
        BundleError: `root` is no folder, cannot be read, or holds no bundle.
    """
    try:
        if not root.is_dir():
            raise BundleError(
                f"no folder {root}: name the folder that `train --out` wrote with --models"
            )
        found = sorted(
            entry.name
            for entry in root.iterdir()
            if not entry.name.startswith(".") and (entry / CURRENT).is_symlink()
        ) or sorted(_unlinked(root))
    except OSError as error:
        raise BundleError(
            f"cannot read the folder {error.filename}: {error.strerror} for user {os.geteuid()}. "
            "Change its mode, or run as its owner (docker: --user)"
        ) from error
    if not found:
        raise BundleError(
            f"no bundle in {root.absolute()}: it should hold NAME/VERSION/{GRAPH} with a link "
            f"NAME/{CURRENT}; `train --out {root}` writes one, --models names another folder"
        )
    return found


@dataclass(frozen=True)
class Found:
    """What a folder holds under one name, unread."""

    current: str | None
    """Version that the link `current` points to, or the only one in a copy that lost every link;
    None where there is neither."""
    versions: dict[str, tuple[int, ...]]
    """Versions that have a manifest, each with a stamp that changes when its files are written
    again."""


def scan(root: Path) -> dict[str, Found]:
    """Every name under `root` that has a version or a link `current`, sorted.

    Raises:
        BundleError: `root` cannot be read.
    """
    found = {}
    try:
        for folder in sorted(root.iterdir()):
            if folder.name.startswith(".") or not folder.is_dir():
                continue
            link = folder / CURRENT
            current = link.readlink().name if link.is_symlink() else None
            versions = {v: _stamp(folder / v) for v in _versions(folder) if v != CURRENT}
            if current is not None or versions:
                found[folder.name] = Found(current, versions)
        for name, version in _unlinked(root).items():
            found[name] = Found(version, found[name].versions)
    except OSError as error:
        raise BundleError(f"cannot read the folder {root}: {error.strerror}") from error
    return found


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
    path = root / name / (version or _unlinked(root).get(name) or CURRENT)
    try:
        path = path.resolve(strict=True)
        graph = (path / GRAPH).read_bytes()
        manifest_bytes = (path / MANIFEST).read_bytes()
    except PermissionError as error:
        raise BundleError(
            f"cannot read the bundle {error.filename}: {error.strerror} for user {os.geteuid()}. "
            "Change its mode, or run as its owner (docker: --user)"
        ) from error
    except OSError as error:
        there = [found for found in _versions(root / name) if found != CURRENT]
        raise BundleError(
            f"cannot read the bundle {path}: {error.strerror}. Versions of {name} there: "
            f"{', '.join(there) or 'none'}; `{CURRENT}` must be a link to one of them"
        ) from error
    found = version_of(graph, manifest_bytes)
    if found != path.name:
        raise BundleError(
            f"the bundle {path} is damaged: its content hashes to {found}; publish it again"
        )
    try:
        manifest = Manifest.model_validate_json(manifest_bytes)
    except ValidationError as error:
        schema = _schema_of(manifest_bytes)
        raise BundleError(
            f"{path / MANIFEST} has schema_version {schema}, this release reads {SCHEMA_VERSION}"
            if schema != SCHEMA_VERSION
            else f"{path / MANIFEST} does not follow the schema: {error}"
        ) from error
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
    return sorted(bundles, key=lambda b: (b.manifest.n_labels_train, b.name))


def read_run(path: Path) -> Run:
    """The `run.json` of the bundle in folder `path`."""
    try:
        return Run.model_validate_json((path / RUN).read_bytes())
    except (OSError, ValidationError) as error:
        raise BundleError(f"cannot read {path / RUN}: {error}") from error


def _variants(path: Path, manifest: Manifest) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for variant in manifest.variants:
        file = path / variant_file(variant.precision)
        try:
            found[variant.precision] = file.read_bytes()
        except OSError as error:
            raise BundleError(f"cannot read {file}: {error.strerror}; publish it again") from error
        if hashlib.sha256(found[variant.precision]).hexdigest() != variant.graph_hash:
            raise BundleError(f"{file} is damaged: its hash differs; publish it again")
    return found


def _unlinked(root: Path) -> dict[str, str]:
    """The only version of each name that has one, in a folder where no name has a link.

    Object stores and BentoML's bentos copy files and leave links out.
    """
    if any(link.is_symlink() for link in root.glob(f"[!.]*/{CURRENT}")):
        return {}
    there = {
        folder.name: [version for version in _versions(folder) if version != CURRENT]
        for folder in root.glob("[!.]*")
    }
    return {name: versions[0] for name, versions in there.items() if len(versions) == 1}


def _versions(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob(f"[!.]*/{MANIFEST}"))


def _schema_of(manifest: bytes) -> object:
    try:
        content = json.loads(manifest)
    except ValueError:
        return "none (no JSON)"
    return content.get("schema_version") if isinstance(content, dict) else "none (no object)"


def _intact(folder: Path) -> bool:
    """Whether a whole bundle of the version that the folder's name says is there."""
    try:
        manifest = (folder / MANIFEST).read_bytes()
        found = version_of((folder / GRAPH).read_bytes(), manifest)
        if found == folder.name:
            _variants(folder, Manifest.model_validate_json(manifest))
    except (OSError, BundleError, ValidationError):
        return False
    return found == folder.name and (folder / CARD).exists() and (folder / RUN).exists()


def _place(beside: Path, final: Path) -> None:
    """Renames a written bundle into place, where a damaged one may be in the way."""
    try:
        beside.rename(final)
    except OSError:
        if _intact(final):  # another process published the same bundle in the meantime
            return
        aside = beside.with_name(f"{beside.name}-damaged")
        final.rename(aside)
        try:
            beside.rename(final)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _point(link: Path, target: str) -> None:
    beside = link.with_name(f".{link.name}-{secrets.token_hex(8)}")
    beside.symlink_to(target)
    try:
        beside.replace(link)
    finally:
        beside.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
