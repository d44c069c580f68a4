"""The commands of docs/deploying.md, read from the page: what is run is what it says."""

from __future__ import annotations

import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

from container.engine import Failed


@dataclass(frozen=True)
class Page:
    """Commands as printed: the four, and the others that are run."""

    build: str
    train: str
    serve: str
    ask: str
    self_tests: list[str]
    parts: str
    locked: str

    def builds(self) -> list[list[str]]:
        """Returns the arguments of each `docker build` in the first command."""
        recorder = 'docker() { for word in "$@"; do printf "%s\\0" "$word"; done; printf "\\n"; }\n'
        done = subprocess.run(
            ["sh", "-euc", recorder + self.build], capture_output=True, text=True, check=True
        )
        calls = [line.rstrip("\0").split("\0") for line in done.stdout.splitlines()]
        if not calls or any(call[0] != "build" for call in calls):
            raise Failed(f"no builds in {self.build!r}")
        return [call[1:] for call in calls]


def read(path: Path) -> Page:
    """The first block of shell commands on the page, and what it says of self-tests and parts.

    Raises:
        Failed: something is missing.
    """
    blocks = [
        re.sub(r"\\\n *", "", block).splitlines()
        for block in re.findall(r"(?ms)^```sh\n(.*?)^```$", path.read_text())
    ]
    if not blocks or len(blocks[0]) != 4:
        raise Failed(f"{path.name}: the first block must have 4 commands")
    build, train, serve, ask = blocks[0]
    lines = [line for block in blocks for line in block]
    self_tests = [line for line in lines if "--self-test" in line]
    parts = [line for line in lines if "scripts/sbom.py" in line]
    locked = [line for line in lines if "--read-only" in line]
    if len(self_tests) != 2 or len(parts) != 1 or len(locked) != 1:
        raise Failed(
            f"{path.name}: two self-tests, one list of parts and one read-only run were expected"
        )
    return Page(build, train, serve, ask, self_tests, parts[0], locked[0])


def without_gpu(command: str) -> str:
    """The command without `--gpus all`, which must be in it."""
    words = shlex.split(command)
    at = words.index("--gpus")
    return shlex.join(words[:at] + words[at + 2 :])
