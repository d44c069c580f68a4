"""Compares two builds of one commit: they should be the same image."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

from container.engine import ROOT, Engine
from container.report import Report


def twice(engine: Engine, report: Report, arguments: list[str]) -> None:
    """Builds an image two times, with the commit's time for every file, and compares them.

    The arguments are those of `docker build`; a check that fails names the files that differ.
    """
    git = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
    epoch = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    at = arguments.index("-t") + 1
    tags = [f"{arguments[at]}-{which}" for which in ("once", "again")]
    with report.attempt("two builds of one commit"):
        for tag in tags:
            own = [*arguments[:at], tag, *arguments[at + 1 :]]
            engine.build(["--timestamp", epoch, *own], ROOT, tag)
        trees = []
        for tag in tags:
            root = Path(engine.output("image", "mount", tag))
            trees.append(tree(root))
            engine.run("image", "unmount", tag)
        one, other = trees
        differ = sorted(
            path for path in one.keys() | other.keys() if one.get(path) != other.get(path)
        )
        report.check(
            f"two builds have the same {len(one):,} files", not differ, "\n    ".join(differ)
        )
        images = [json.loads(engine.output("image", "inspect", tag))[0] for tag in tags]
        first, second = (image["RootFS"]["Layers"] for image in images)
        same = [a == b for a, b in zip(first, second, strict=True)]
        what = f"two builds have the same {len(same)} layers"
        report.check(what, all(same), f"the same, from the base up: {same}")
        for image in images:
            del image["RepoTags"], image["NamesHistory"]
            # podman's docker format keeps the id and the host name of the container of the build.
            del image["Id"], image["Digest"], image["RepoDigests"]
        unlike = [key for key in images[0] if images[0][key] != images[1].get(key)]
        pairs = [f"{key}: {images[0][key]} | {images[1].get(key)}" for key in unlike]
        report.check("two builds have the same configuration", not unlike, "\n    ".join(pairs))
    for tag in tags:
        engine.run("rmi", "--force", tag)


def tree(root: Path) -> dict[str, tuple[int, int, int, str]]:
    """Mode, owner, group and content of every file, link and folder below `root`."""
    found = {}
    for folder, folders, files in os.walk(root):
        for name in [*folders, *files]:
            path = Path(folder) / name
            state = path.lstat()
            content = ""
            if path.is_symlink():
                content = str(path.readlink())
            elif path.is_file():
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            about = (state.st_mode, state.st_uid, state.st_gid, content)
            found[str(path.relative_to(root))] = about
    return found
