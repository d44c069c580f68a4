from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from training import data
from training.data import Data

SMALL = ("--data", "digits", "--image-size", "8", "--device", "cpu")
QUICK = (*SMALL, "--epochs", "2", "--extractor", "none")

TRAIN = Path(sys.executable).with_name("train")
PRETRAIN = Path(sys.executable).with_name("pretrain")

# Nets of a few pixels: more threads than one mostly wait for each other.
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
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # each process would compile our modules anew
    return env


def train(out: Path, cache: Path, *options: str) -> Finished:
    return finished(out, cache, str(TRAIN), "--out", str(out), *options)


def pretrain(out: Path, cache: Path, *options: str) -> Finished:
    """`pretrain`, to a file of its own."""
    return finished(out, cache, str(PRETRAIN), "--out", str(out), *options)


def finished(out: Path, cache: Path, *command: str) -> Finished:
    """Runs a command with a cache, to its end."""
    done = subprocess.run(
        [*command, "--cache", str(cache)],
        capture_output=True,
        text=True,
        check=False,
        env=environment(cache),
        timeout=240,
    )
    return Finished(done.returncode, done.stdout, done.stderr, out)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that the tests of a session share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def digits(cache: Path) -> Data:
    """scikit-learn's digits at 8 pixels."""
    return data.load("digits", size=8, cache=cache, say=lambda _: None)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Finished:
    """`train` as a real process: digits, 10 % and all labels; do not change it."""
    done = train(
        tmp_path_factory.mktemp("trained"),
        cache,
        *QUICK,
        *("--fraction", "1.0", "--fraction", "0.1"),
    )
    assert done.code == 0, done.stderr
    return done
