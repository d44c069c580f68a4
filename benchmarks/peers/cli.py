"""The command `bench peers`: this service and others, loaded in turn by wrk."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import tyro

from labelcurve.benchmarks.peers import job, table
from labelcurve.bundle import command


def main(arguments: Sequence[str]) -> None:
    """The command `bench peers`."""
    bench = tyro.cli(job.BenchPeers, args=arguments, prog="labelcurve bench peers")
    result = job.run(bench, partial(print, flush=True))
    text = table.markdown(result)
    (bench.out / "peers.json").write_text(result.model_dump_json(indent=2) + "\n")
    (bench.out / "peers.md").write_text(text)
    print(f"\n{text}")
    command.answer({"out": str(bench.out), "peers": [p.name for p in result.peers]})
