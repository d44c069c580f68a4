"""`labelcurve completion SHELL`: the completion script for all commands, made by tyro."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, make_dataclass
from importlib import import_module
from typing import Annotated, Any, Literal, Union, cast

import tyro

from labelcurve.__main__ import COMMANDS, Command


@dataclass(frozen=True)
class Completion:
    """Prints a completion script; for bash: source <(labelcurve completion bash).

    Only commands whose extra is installed are completed.
    """

    shell: tyro.conf.Positional[Literal["bash", "zsh", "tcsh"]]


def main(arguments: Sequence[str]) -> None:
    """The command `labelcurve completion`."""
    chosen = tyro.cli(Completion, prog="labelcurve completion", args=arguments)
    kinds: dict[str, Any] = {}
    for name, command in COMMANDS.items():
        with suppress(ModuleNotFoundError):
            kinds[name] = _options(command)
    tyro.extras.subcommand_cli_from_dict(
        kinds, prog="labelcurve", args=["--tyro-print-completion", chosen.shell]
    )


def _options(command: Command) -> Any:
    """The dataclass of a command's options; those of commands below it are a field of it."""
    found = _named(command.options)
    if not command.subcommands:
        return found
    annotated, union = cast(
        "tuple[Any, Any]", (Annotated, Union)
    )  # built at run time, opaque to mypy
    below = tuple(
        annotated[_named(options), tyro.conf.subcommand(name, prefix_name=False)]
        for name, options in command.subcommands.items()
    )
    fields = [("subcommand", annotated[union[below], tyro.conf.OmitArgPrefixes])]
    return make_dataclass(found.__name__, fields, bases=(found,), kw_only=True)


def _named(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
