"""The command `labelcurve`: its commands, and where each of them is implemented."""

from __future__ import annotations

import importlib.metadata
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import cast

from labelcurve.bundle import command
from labelcurve.bundle.errors import near


@dataclass(frozen=True)
class Command:
    """One command: adding one is a line in `COMMANDS`."""

    summary: str
    """Its line in `labelcurve --help`."""
    main: str
    """MODULE:FUNCTION, which takes the arguments after the command's name."""
    options: str
    """MODULE:DATACLASS of its options, for shell completion."""
    subcommands: Mapping[str, str] = field(default_factory=dict)
    """Commands below it, likewise."""

    @property
    def extra(self) -> str | None:
        """The extra that installs what the command imports."""
        return EXTRAS.get(self.main.split(".")[1])

    def load(self) -> Callable[[Sequence[str]], None]:
        """The function, imported."""
        module, _, function = self.main.partition(":")
        return cast("Callable[[Sequence[str]], None]", getattr(import_module(module), function))


EXTRAS = {"training": "train", "serving": "serve", "benchmarks": "bench"}
"""Extra by the package of a command."""


COMMANDS = {
    "plan": Command(
        "answer whether more labels pay, from the present ones",
        "labelcurve.training.cli:plan",
        "labelcurve.training.embedding_options:PlanOptions",
    ),
    "suggest": Command(
        "choose which images to label next",
        "labelcurve.training.cli:suggest",
        "labelcurve.training.embedding_options:SuggestOptions",
    ),
    "audit": Command(
        "list images with doubtful labels, repeated, empty and broken ones",
        "labelcurve.training.cli:audit",
        "labelcurve.training.embedding_options:AuditOptions",
    ),
    "pretrain": Command(
        "train a feature extractor on images without labels",
        "labelcurve.training.cli:pretrain",
        "labelcurve.training.options:PretrainOptions",
    ),
    "train": Command(
        "fine-tune a classifier on fractions of the labels and export it",
        "labelcurve.training.cli:train",
        "labelcurve.training.options:Options",
    ),
    "sweep": Command(
        "train a grid of models on one machine or a Ray cluster",
        "labelcurve.training.cli:sweep",
        "labelcurve.training.sweep_options:SweepOptions",
    ),
    "quantize": Command(
        "add INT8 or fp16 graphs to models, behind a gate on accuracy",
        "labelcurve.training.cli:quantize",
        "labelcurve.training.options:QuantizeOptions",
    ),
    "serve": Command(
        "answer POST /classify over HTTP from a folder of models",
        "labelcurve.serving.cli:main",
        "labelcurve.serving.settings:Settings",
    ),
    "models": Command(
        "list, promote, roll back and remove the models of a folder",
        "labelcurve.serving.lifecycle:main",
        "labelcurve.serving.lifecycle:Action",
    ),
    "classify": Command(
        "label image files with the same engine, without a server",
        "labelcurve.serving.classify:main",
        "labelcurve.serving.classify:Options",
    ),
    "api-key": Command(
        "make an API key for the service",
        "labelcurve.serving.api_key:main",
        "labelcurve.serving.api_key:NewKey",
    ),
    "bench": Command(
        "compare models in a report: accuracy, calibration, latency, load",
        "labelcurve.benchmarks.cli:main",
        "labelcurve.benchmarks.options:Bench",
        {
            "compare": "labelcurve.benchmarks.compare:Compare",
            "render": "labelcurve.benchmarks.render:Render",
            "peers": "labelcurve.benchmarks.peers.job:BenchPeers",
        },
    ),
    "completion": Command(
        "print a completion script for bash, zsh or tcsh",
        "labelcurve.completion:main",
        "labelcurve.completion:Completion",
    ),
}

HELP = """\
usage: labelcurve COMMAND [OPTIONS]

How many labels does an image classifier need? Train on fractions of the
labels, prove the export, serve, compare.

{commands}

`labelcurve COMMAND --help` lists the options of a command. Where the output is
not a terminal, or with --json, the last line of a result is one JSON document."""


def main() -> None:
    """Runs the command that the first argument names; exits with 2 where there is none."""
    sys.argv[0] = "labelcurve"  # also under `python -m`: it is recorded with each result
    name, *arguments = sys.argv[1:] or [""]
    extra = COMMANDS[name].extra if name in COMMANDS else None
    # A service that is stopped by a signal has not failed.
    terminated = 0 if name == "serve" else 128 + signal.SIGTERM
    command.enter(partial(_run, name), arguments, extra=extra, terminated=terminated)


def _run(name: str, arguments: Sequence[str]) -> None:
    if name == "--version" or (name in COMMANDS and arguments[-1:] == ["--version"]):
        print(f"labelcurve {importlib.metadata.version('labelcurve')}")
    elif name in ("-h", "--help", "help"):
        print(_help())
    elif name not in COMMANDS:
        wrong = f"labelcurve: no command {name!r}{near(name, COMMANDS)}\n\n" if name else ""
        print(f"{wrong}{_help()}", file=sys.stderr)
        sys.exit(2)
    else:
        COMMANDS[name].load()(arguments)


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return HELP.format(commands="\n".join(lines))


if __name__ == "__main__":
    main()
