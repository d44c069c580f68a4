"""`api-key`: makes an API key for `serve --api-keys`."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from labelcurve.bundle.errors import LabelcurveError
from labelcurve.serving.web.access import LINE, parse_keys

RATES = (0.001, 1e6)
"""Smallest and largest limit in requests per second."""


@dataclass(frozen=True)
class NewKey:
    """Makes an API key for `serve --api-keys FILE`, adds its hash to the file and prints it."""

    name: str
    """Name of the key's owner: letters, digits, dot, dash and underscore."""
    file: Path = Path("api-keys")
    """File that `serve --api-keys` reads; a running `serve` picks the key up within a second."""
    rate: float = 0.0
    """Limit in requests per second, over all workers; 0 for none."""


def main(arguments: Sequence[str]) -> None:
    """The entry point of `api-key`."""
    positional = (tyro.conf.PositionalRequiredArgs,)
    options = tyro.cli(NewKey, prog="labelcurve api-key", args=arguments, config=positional)
    print(make_key(options))


def make_key(options: NewKey) -> str:
    """Make a key and append its line to the file, which is created with mode 0600.

    Returns:
        The key itself, which is stored nowhere.

    Raises:
        LabelcurveError: the name is invalid or taken, the rate is out of range, or the file cannot
            be written.
    """
    if options.rate and not RATES[0] <= options.rate <= RATES[1]:
        raise LabelcurveError(
            f"--rate {options.rate:g}: {RATES[0]:g} to {RATES[1]:,.0f} requests per second, or 0 "
            "for no limit"
        )
    token = f"lc_{secrets.token_urlsafe(32)}"
    digest = hashlib.sha256(token.encode()).hexdigest()
    rate = f"{options.rate:.3f}".rstrip("0").rstrip(".")
    line = f"{options.name} {digest} {rate}\n"
    if LINE.fullmatch(line.strip()) is None:
        raise LabelcurveError(
            f"{options.name!r}: a name has 1 to 64 letters, digits, dots, dashes and underscores"
        )
    there = parse_keys(options.file) if options.file.exists() else []
    if options.name in {key.name for key in there}:
        raise LabelcurveError(f"{options.file} has a key for {options.name}: remove its line")
    try:
        options.file.touch(mode=0o600)
        with options.file.open("a+") as file:  # not over the line of another `api-key`
            file.seek(0)
            text = file.read()  # to its end, where an editor may have left no newline
            file.write(line if text.endswith("\n") or not text else f"\n{line}")
    except OSError as error:
        raise LabelcurveError(f"cannot write {options.file}: {error.strerror}") from error
    return token
