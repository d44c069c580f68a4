"""The options of `sweep`."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated

import tyro

from labelcurve.bundle.command import Within, check
from labelcurve.bundle.errors import LabelcurveError, near
from labelcurve.training.options import Options, repeated


@dataclass(frozen=True)
class SweepOptions:
    """Trains the grid of data, fractions and seeds as independent jobs on Ray.

    Any option of `train` may follow and holds for each job, such as --out, --epochs and
    --max-minutes. Bundles, checkpoints and the jobs' logs (.runs/sweep/) lie in --out; give the
    same command again after an interruption. Where stdout is not a terminal,
    and with --json, its last line is one JSON document.
    """

    data: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """As for `train`; several of them, or the option again. Without it: cifar10."""
    fraction: tyro.conf.UseAppendAction[tuple[float, ...]] = ()
    """As for `train`. Without it: 0.05, 0.1, 0.2, 0.3, 0.5 and 1."""
    seed: int = 0
    """First seed."""
    seeds: Annotated[int, Within(1)] = 1
    """Number of seeds, one job per seed."""
    address: str | None = None
    """Ray cluster: HOST:PORT of its head, or `auto` on one of its machines, which must all have
    Labelcurve and see --data and --out under the same paths. Without it, Ray starts on this machine
    alone, and ends with the command."""
    cpus: Annotated[float, Within(0, above=True)] = 1
    """CPUs of each job; also its threads."""
    gpus: Annotated[float | None, Within(0)] = None
    """GPUs of each job; by default 1 where the cluster has GPUs. With 0.25, four jobs share one."""
    retries: Annotated[int, Within(0)] = 3
    """Restarts of a job whose worker or machine died; it resumes from its checkpoint."""

    def __post_init__(self) -> None:
        """Validates the values.

        Raises:
            LabelcurveError: names the flag, the value and what is allowed.
        """
        check(self)
        if self.address is not None and not re.fullmatch(r"auto|\S+:\d+", self.address):
            raise LabelcurveError(
                f"--address {self.address}: allowed are HOST:PORT of the cluster's head, and "
                "`auto` on one of its machines"
            )


def parse_sweep(arguments: Sequence[str]) -> tuple[SweepOptions, list[str]]:
    """The options of `sweep`, and the remaining ones for `train`."""
    given = repeated(arguments, "--fraction", "--data")
    found: tuple[SweepOptions, list[str]] = tyro.cli(
        SweepOptions, prog="labelcurve sweep", args=given, return_unknown_args=True
    )
    chosen, others = found
    _check_known(others)
    return replace(chosen, data=chosen.data or ("cifar10",)), others


def _check_known(given: Sequence[str]) -> None:
    """Exits with 2 on an option that neither `sweep` nor `train` has, and names a similar one."""
    known = {
        "--" + field.name.replace("_", "-")
        for kind in (SweepOptions, Options)
        for field in fields(kind)
    }
    for argument in given:
        name = argument.partition("=")[0].replace("_", "-")
        if name.startswith("--") and name not in known:
            print(
                f"error: {argument}: neither `sweep` nor `train` has this option{near(name, known)}"
                ". `labelcurve sweep --help` and `labelcurve train --help` list them",
                file=sys.stderr,
            )
            sys.exit(2)
