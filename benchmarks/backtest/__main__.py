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
from labelcurve.benchmarks.record import Provenance
from labelcurve.bundle import command, files
from labelcurve.bundle.errors import LabelcurveError
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
    out: Path | None = None
    """File to write; by default one in benchmarks/results, backtest.json or
    backtest-unlabelled.json."""


def main(arguments: Sequence[str]) -> None:
    """Runs the back-test; draws that the file already holds are kept."""
    options = provenance.parsed(Options, arguments)
    if options.unlabelled and options.trashnet is None:
        raise LabelcurveError("--unlabelled also needs --trashnet and --trashnet-extractor")
    # Data sets have one name in both, and other truths.
    kind = "backtest-unlabelled" if options.unlabelled else "backtest"
    out = options.out or Path(f"benchmarks/results/{kind}.json")
    begun = provenance.here()
    found = _kept(out)
    have = {(d.population, d.n_labels, d.seed) for d in found}
    drawn_from = _populations(options)
    for seed in range(options.draws):
        since = time.monotonic()
        for population in drawn_from:
            for n, more in _numbers(population):
                if (population.name, n, seed) not in have:
                    found.append(draw(population, n, more, seed))
                    _write(out, found, begun)
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


def _numbers(population: Population) -> Sequence[tuple[int, int]]:
    images = len(population.labels)
    if images < (least := sum(FEW) + HELD_OUT):
        raise LabelcurveError(f"{population.name} has {images:,} images: {least:,} are needed")
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


def _kept(path: Path) -> list[Draw]:
    """The draws that a file holds.

    Raises:
        LabelcurveError: it holds something else.
    """
    try:
        return [Draw(**d) for d in json.loads(path.read_text())["draws"]] if path.exists() else []
    except (ValueError, KeyError, TypeError) as error:
        raise LabelcurveError(
            f"--out {path} holds no draws of this release: name another file, or move it away"
        ) from error


def _write(path: Path, draws: Sequence[Draw], begun: Provenance) -> None:
    document = {
        "provenance": provenance.again(begun).model_dump(),
        "header": HEADER,
        "rows": rows(draws),
        "draws": [d.model_dump() for d in draws],
    }
    text = json.dumps(document).replace('{"population"', '\n{"population"') + "\n"
    files.write_out(path, text)


if __name__ == "__main__":
    command.enter(main, extra="train")
