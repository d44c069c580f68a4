"""The README's table of what the service withstood, from `benchmarks/results/service/`."""

from __future__ import annotations

from typing import Any

from benchmarks.tables import counted

HEADER = "| what was done to it | how much | errors of the service |\n| --- | --- | ---: |\n"


def markdown(
    swaps: dict[str, Any],
    restarts: dict[str, Any],
    overload: dict[str, Any],
    soak: dict[str, Any],
    fuzz: dict[str, Any],
    guided: dict[str, Any],
) -> str:
    """A row for each run of `benchmarks.faults`, `soak` and `fuzz`, and where it was made."""
    asked = sum(restarts["statuses"].values()) + restarts["lost"]
    good, bad = (sum(soak["statuses"][kind].values()) for kind in ("good", "bad"))
    most = overload["overload"]
    inside, over = fuzz["in_process"], fuzz["over_http"]
    memory, descriptors = soak["memory_mb"], soak["descriptors"]
    unlike = swaps["answers_unlike_the_version_that_they_name"]
    rows = [
        (
            "swaps of the model under load",
            f"{swaps['swaps']} swaps, {swaps['answers']:,} answers, {unlike} unlike the version "
            "that they name",
            sum(swaps["errors"].values()),
        ),
        (
            "restarts of two copies behind a proxy",
            f"{restarts['restarts']} restarts, {asked:,} requests",
            restarts["lost"],
        ),
        (
            f"{most['connections']:,} connections at {overload['offered_of_capacity']:.0f} times "
            "its capacity",
            f"{overload['goodput_of_peak']:.0%} of its best number of answers a second, the rest "
            f"503; answers again {overload['seconds_to_recover']:.2f} s after it",
            sum(overload["server_errors_other_than_503"].values()),
        ),
        (
            "mixed traffic with swaps and bad input",
            f"{soak['seconds'] / 60:.0f} min at {soak['requests_per_s']:.0f} requests/s (its peak "
            f"was {soak['peak_requests_per_s']:.0f}), {good:,} good and {bad:,} bad requests, "
            f"{soak['versions_published']} swaps; memory {memory['change']:+.1%}, descriptors "
            f"{descriptors['second_quarter']:.0f} to {descriptors['last_quarter']:.0f}",
            sum(soak["unexpected"].values()),
        ),
        (
            "damaged files",
            f"{inside['inputs']:,} in the process, {over['requests']:,} over HTTP",
            sum(inside["unexpected"].values()) + sum(over["unexpected"].values()),
        ),
        (
            "requests and files, damaged as coverage guides",
            f"{guided['inputs']:,} in the process; they took {guided['branches']['all']:,} "
            f"branches of Python, undamaged ones {guided['branches']['seeds']:,}",
            sum(guided["unexpected"].values()),
        ),
    ]
    table = HEADER + "".join(f"| {a} | {b} | {c} |\n" for a, b, c in rows)
    made, cores = swaps["provenance"], _cores(swaps, restarts, overload, soak, fuzz, guided)
    return (
        f"{table}\nOne run each, {made['date'][:10]}, {made['cpu']}, small models of digits, "
        f"bentoml {made['packages']['bentoml']}. {cores} Made by `python -m benchmarks.faults`, "
        "`benchmarks.soak` and `benchmarks.fuzz` ([results](benchmarks/results/service/))."
    )


def _cores(*documents: dict[str, Any]) -> str:
    """How many each run had, and what else went on."""
    names = ("swaps", "restarts", "connections", "mixed traffic", "damaged files", "coverage")
    runs: dict[int, list[str]] = {}
    for name, document in zip(names, documents, strict=True):
        runs.setdefault(document["provenance"]["cores"], []).append(name)
    text = "; ".join(f"{counted(n, 'core')}: {', '.join(found)}" for n, found in runs.items())
    notes = [f"{n}: {d['note']}." for n, d in zip(names, documents, strict=True) if d.get("note")]
    return " ".join([f"{text}.", *notes])
