"""Hardware, versions, commit and command of a run."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import psutil
import tyro

from labelcurve.benchmarks.record import Provenance
from labelcurve.bundle import cuda, files
from labelcurve.bundle.command import answer, check
from labelcurve.bundle.errors import LabelcurveError
from labelcurve.bundle.machine import cores, cpu_name, git_commit, versions

PACKAGES = ("labelcurve", "onnxruntime", "bentoml", "locust", "numpy", "pillow", "scikit-learn")
MACHINE_PATH = re.compile(r"(?:^|(?<=[=,;\s'\"(\[])|(?<=:)(?!//))(?:file://|~[\w.-]*|\.\.)?/(?!\s)")
"""Start of a path that is specific to one machine: absolute, below a home or above the working
folder. URLs, fractions and paths below the working folder do not match."""

Options = TypeVar("Options")


def here(command: Sequence[str] | None = None) -> Provenance:
    """Describe this machine and environment, and what reproduces the figures.

    That is by default the command of this process. Of a path of this machine only the last name is
    kept.
    """
    return Provenance(
        command=shown([*_program(), *sys.argv[1:]] if command is None else command),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        git_commit=git_commit(Path(__file__)),
        cpu=cpu_name(),
        cores=cores(),
        memory_gb=round(psutil.virtual_memory().total / 2**30, 1),
        gpu=", ".join(cuda.names()) or None,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        packages=versions(PACKAGES),
    )


def again(begun: Provenance) -> Provenance:
    """Describe the conditions once more, with the commit of `begun`.

    The first write of a result changes a tracked file: the commit is that of the code alone.
    """
    return here().model_copy(update={"git_commit": begun.git_commit})


def conditions(*packages: str) -> dict[str, Any]:
    """Describe the conditions of a measurement of training code, with versions of `packages`."""
    made = here()
    return {
        **made.model_dump(include={"command", "cpu", "cores", "gpu", "git_commit"}),
        "load_average": round(os.getloadavg()[0], 1),
        "date": made.date[:10],
        "packages": versions(packages),
    }


def parsed(kind: type[Options], arguments: Sequence[str]) -> Options:
    """Parse the options of a benchmark, the file `out` among them.

    Raises:
        LabelcurveError: an option is wrong, or the result could not be written after the work.
    """
    options = tyro.cli(kind, args=arguments, prog=" ".join(_program()))
    check(options)
    check_out(getattr(options, "out", None))
    return options


def save(out: Path, document: dict[str, Any]) -> None:
    """Write a document as JSON, atomically."""
    files.write_out(out, json.dumps(document, indent=1) + "\n")


def write(out: Path | None, document: dict[str, Any]) -> None:
    """Write a document to a file, if there is one, and print it as the last line."""
    if out is not None:
        save(out, document)
    answer(document)


def check_out(out: Path | None) -> None:
    """Check before the work that its result can be written after it.

    Raises:
        LabelcurveError: it cannot.
    """
    if out is None:
        return
    if out.is_dir():
        raise LabelcurveError(
            f"--out {out} is a folder: name a file in it, such as {out / 'result.json'}"
        )
    files.check_out(out.parent)


def shown(command: Sequence[str]) -> str:
    """Write a command without the paths of this machine.

    Of each argument the part from the first such path on is replaced by its last name:
    `timm:NAME=/home/me/weights.pth` becomes `timm:NAME=weights.pth`.
    """
    return shlex.join(_last_name(part) for part in command)


def _last_name(argument: str) -> str:
    found = MACHINE_PATH.search(argument)
    if found is None:
        return argument
    return argument[: found.start()] + Path(argument[found.start() :]).name


def _program() -> list[str]:
    name = Path(sys.argv[0]).name
    if name != "labelcurve" and (spec := sys.modules["__main__"].__spec__):
        return ["python", "-m", spec.name.removesuffix(".__main__")]
    return [name]
