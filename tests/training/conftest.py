from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from labelcurve.training.data import dataset
from labelcurve.training.data.dataset import Data
from labelcurve.training.models import backbones
from labelcurve.training.runtime import lock

SMALL = ("--data", "digits", "--image-size", "8", "--device", "cpu")
QUICK = (*SMALL, "--epochs", "2", "--extractor", "none")

LABELCURVE = str(Path(sys.executable).with_name("labelcurve"))
NARROW = (sys.executable, "-m", "tests.training.narrow")
"""The command with a narrow convnet."""

TRAIN = (*NARROW, "train")

# Networks on a few pixels: several threads mostly wait for each other.
torch.set_num_threads(1)


@dataclass(frozen=True)
class Finished:
    """A command that has run to its end."""

    code: int
    stdout: str
    stderr: str
    out: Path

    @property
    def document(self) -> Any:
        """The JSON on the last line of stdout."""
        return json.loads(self.stdout.splitlines()[-1])


def environment(cache: Path) -> dict[str, str]:
    """For a real command."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # each process would compile our modules again
    return env


def train(out: Path, cache: Path, *options: str) -> Finished:
    return finished(out, cache, *TRAIN, "--out", str(out), *options)


def pretrain(out: Path, cache: Path, *options: str) -> Finished:
    """`pretrain`, to a separate file."""
    return finished(out, cache, LABELCURVE, "pretrain", "--out", str(out), *options)


def finished(out: Path, cache: Path, *command: str) -> Finished:
    """Runs a command with a cache, to its end."""
    done = subprocess.run(
        [*command, "--cache", str(cache)],
        capture_output=True,
        text=True,
        check=False,
        env=environment(cache),
        timeout=600,  # a bound, not a measurement
    )
    return Finished(done.returncode, done.stdout, done.stderr, out)


@contextmanager
def narrowed() -> Iterator[None]:
    """Makes the convnet of this process narrow: a step takes a tenth of the time.

    An extractor of it fits no other process, so it does not belong into `cache`.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbones.ConvNet.__init__, "__defaults__", ((16, 32, 64),))
        yield


@pytest.fixture
def narrow() -> Iterator[None]:
    with narrowed():
        yield


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that the tests of a session share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def digits(cache: Path) -> Data:
    """scikit-learn's digits at 8 pixels."""
    return dataset.load("digits", size=8, cache=cache, say=lambda _: None)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Finished:
    """`train` as a real process: digits, 10 % and all labels; do not change it.

    pytest's workers share it: the first that asks runs it.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    out, said = folder / "trained", folder / "trained.json"
    with lock.hold(folder / ".trained.lock", "{holder} trains", wait=True):
        if not said.exists():
            done = train(out, cache, *QUICK, *("--fraction", "1.0", "--fraction", "0.1"))
            assert done.code == 0, done.stderr
            said.write_text(json.dumps([done.stdout, done.stderr]))
    stdout, stderr = json.loads(said.read_text())
    return Finished(0, stdout, stderr, out)
