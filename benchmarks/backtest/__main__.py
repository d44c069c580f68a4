"""`python -m labelcurve.benchmarks.backtest`: draws, plans, compares with the truth."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import tyro

from labelcurve.benchmarks.backtest.draws import HEADER, HELD_OUT, Draw, draw, row
from labelcurve.benchmarks.backtest.populations import Population, derived, embed, semi_supervised
from labelcurve.benchmarks.harness import provenance
from labelcurve.bundle import files
from labelcurve.bundle.text import table
from labelcurve.training.data.dataset import default_cache

FEW = (200, 600)
"""Labels now and further labels, in draws with few labels."""
MANY = (800, 2000)
"""Likewise with many; small data sets split the images not held out in two sevenths and the
rest."""

FEWER = 4_500
"""Maximum number of images of CIFAR-10 where unlabelled ones are used as well."""


@dataclass(frozen=True)
class Options:
    """Draws labels from data sets, forecasts with `plan`, and compares with the measured gain."""

    cifar10: str = "cifar10"
    """CIFAR-10, as for `train --data`."""
    trashnet: str | None = None
    """Folder of TrashNet; without it this data set is left out."""
    trashnet_extractor: str = "auto"
    """As for `train --extractor`, at 224 pixels."""
    unlabelled: bool = False
    """Draw from photos alone, those of TrashNet and of CIFAR-10 at 96 pixels, embedded by
    --trashnet-extractor; the truth is that of `train`, whose head also uses unlabelled images."""
    draws: int = 20
    """Draws per data set and number of labels."""
    images: int = 20_000
    """Maximum number of images of CIFAR-10."""
    cache: Path | None = None
    """As for `train`."""
    out: Path = Path("benchmarks/results/backtest.json")
    """File to write."""


def main() -> None:
    """Runs the back-test; draws that the file already holds are kept."""
    options = tyro.cli(Options, prog="python -m labelcurve.benchmarks.backtest")
    if options.unlabelled and options.trashnet is None:
        raise SystemExit("--unlabelled also needs --trashnet and --trashnet-extractor")
    provenance.check_out(options.out)
    found = _before(options.out)
    have = {(d.population, d.n_labels, d.seed) for d in found}
    populations = _populations(options)
    for seed in range(options.draws):
        since = time.monotonic()
        for population in populations:
            for n, more in _numbers(len(population.labels)):
                if (population.name, n, seed) not in have:
                    found.append(draw(population, n, more, seed))
                    _write(options.out, found)
        print(f"draw {seed + 1} of {options.draws}: {time.monotonic() - since:.0f} s", flush=True)
    print(table(HEADER, rows(found)))


def _populations(options: Options) -> list[Population]:
    cache = options.cache or default_cache()
    network, most = options.trashnet_extractor, options.images
    photos = []
    if options.trashnet is not None:
        photos.append(embed("trashnet", options.trashnet, network, cache, size=224, most=most))
    if options.unlabelled:
        photos.append(embed("cifar10-96px", options.cifar10, network, cache, size=96, most=FEWER))
        return semi_supervised(*photos)
    cifar10 = embed("cifar10", options.cifar10, "auto", cache, size=32, most=most)
    digits = embed("digits", "digits", "none", cache, size=None, most=most)
    return [cifar10, *derived(cifar10), digits, *photos]


def _numbers(images: int) -> Sequence[tuple[int, int]]:
    if images >= sum(MANY) + HELD_OUT:
        return FEW, MANY
    n = (images - HELD_OUT) // 350 * 100
    return FEW, (n, n * 5 // 2)


def rows(draws: Sequence[Draw]) -> list[list[str]]:
    """A row for each population and number of labels, then one for all with few, and with many."""

    def kind(d: Draw) -> tuple[bool, str]:
        return d.n_labels > FEW[0], d.population

    found = [row(key[1], list(group)) for key, group in groupby(sorted(draws, key=kind), key=kind)]
    numbers = (
        [d for d in draws if d.n_labels <= FEW[0]],
        [d for d in draws if d.n_labels > FEW[0]],
    )
    found += [row("all", some) for some in numbers if some]
    return found


def _before(path: Path) -> list[Draw]:
    if not path.exists():
        return []
    return [Draw(**d) for d in json.loads(path.read_text())["draws"]]


def _write(path: Path, draws: Sequence[Draw]) -> None:
    document = {
        "provenance": provenance.here().model_dump(),
        "header": HEADER,
        "rows": rows(draws),
        "draws": [d.model_dump() for d in draws],
    }
    text = json.dumps(document).replace('{"population"', '\n{"population"') + "\n"
    files.replace(path, text.encode())


if __name__ == "__main__":
    main()
