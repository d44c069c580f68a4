"""`python -m labelcurve.benchmarks.backtest`: draws, plans, compares with the truth."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from labelcurve.benchmarks.backtest import populations
from labelcurve.benchmarks.backtest.draws import HEADER, HELD_OUT, Draw, draw, row
from labelcurve.benchmarks.backtest.populations import Population, Sources, embed
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
class Options(Sources):
    """Draws labels from data sets, forecasts with `plan`, and compares with the measured gain."""

    unlabelled: bool = False
    """Draw from photos alone, those of TrashNet and of CIFAR-10 at 96 pixels, embedded by
    --trashnet-extractor; the truth is that of `train`, whose head also uses unlabelled images."""
    draws: int = 20
    """Draws per data set and number of labels."""
    images: int = 20_000
    """Maximum number of images of CIFAR-10."""
    out: Path = Path("benchmarks/results/backtest.json")
    """File to write."""


def main() -> None:
    """Runs the back-test; draws that the file already holds are kept."""
    options = provenance.parsed(Options)
    if options.unlabelled and options.trashnet is None:
        raise SystemExit("--unlabelled also needs --trashnet and --trashnet-extractor")
    before = json.loads(options.out.read_text())["draws"] if options.out.exists() else []
    found = [Draw(**d) for d in before]
    have = {(d.population, d.n_labels, d.seed) for d in found}
    drawn_from = _populations(options)
    for seed in range(options.draws):
        since = time.monotonic()
        for population in drawn_from:
            for n, more in _numbers(len(population.labels)):
                if (population.name, n, seed) not in have:
                    found.append(draw(population, n, more, seed))
                    _write(options.out, found)
        print(f"draw {seed + 1} of {options.draws}: {time.monotonic() - since:.0f} s", flush=True)
    print(table(HEADER, rows(found)))


def _populations(options: Options) -> list[Population]:
    if options.unlabelled and options.trashnet is not None:
        cache, network = options.cache or default_cache(), options.trashnet_extractor
        return populations.semi_supervised(
            embed("trashnet", options.trashnet, network, cache, size=224, most=options.images),
            embed("cifar10-96px", options.cifar10, network, cache, size=96, most=FEWER),
        )
    cifar10, *others = populations.populations(options, options.images)
    return [cifar10, *populations.derived(cifar10), *others]


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
    both = ([d for d in draws if kind(d)[0] is many] for many in (False, True))
    return found + [row("all", some) for some in both if some]


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
