"""The tables of training: decoding, memory, several processes and machines, interruptions."""

from __future__ import annotations

from typing import Any

from benchmarks.tables import counted, markdown

STAGES = {
    "decode": "first start: decode, sort, write",
    "cache": "an epoch from the cache",
    "anew": "an epoch decoded anew from row groups",
}


def decoding(document: dict[str, Any]) -> str:
    """A row for each image size and network of `benchmarks.decoding`."""
    body = [
        _trained(figure, training)
        for figure in document["figures"]
        for training in figure["training"]
    ]
    rounds = document["figures"][0]["decoding"]["n"]
    header = (
        *("size, network", "decoding, images/s", "training, images/s", "read from the cache"),
        *("waits", "decoded anew", "waits"),
    )
    return (
        f"{markdown(header, body)}\n{document['photos']:,} "
        f"{'generated ' if document['generated'] else ''}photos, "
        f"{document['file_bytes'] / 1e6:,.0f} MB; decoding: mean (range) of {rounds} first starts; "
        f"training: batches of {document['batch']}, one run of {document['seconds']:.0f} s each. "
        f"{document['hardware']}, {document['precision']}{_conditions(document)}"
    )


def _trained(figure: dict[str, Any], training: dict[str, Any]) -> tuple[str, ...]:
    rate = figure["decoding"]
    return (
        f"{figure['image_size']} px, {training['backbone']}",
        f"{rate['mean']:,.0f} ({rate['low']:,.0f} to {rate['high']:,.0f})",
        f"{training['images_per_s']:,.1f}",
        f"{training['from_cache']:,.1f}",
        f"{training['waits_for_cache']:.1%}",
        f"{training['anew']:,.1f}",
        f"{training['waits_for_decoding']:.1%}",
    )


def streaming(document: dict[str, Any]) -> str:
    """A row for each process of `benchmarks.streaming`."""
    body = [
        (
            f"{figure['images']:,}",
            STAGES[figure["stage"]],
            f"{figure['decoded_bytes'] / 1e6:,.0f}",
            f"{figure['opened_bytes'] / 1e6:,.0f}",
            f"{figure['peak_bytes'] / 1e6:,.0f}",
            f"{figure['seconds']:,.0f}",
        )
        for figure in document["figures"]
    ]
    header = ("images", "process", "decoded, MB", "resident when opened, MB", "peak, MB", "s")
    return (
        f"{markdown(header, body)}\nOne run. {document['image_size']} px, JPEG in Parquet, row "
        f"groups of {document['per_group']:,}, `--memory-gb {document['memory_gb']:g}`; resident "
        "memory of the whole process, of which torch and pyarrow are the larger part. "
        f"{document['cpu']}{_conditions(document)}"
    )


def cluster(document: dict[str, Any]) -> str:
    """What `benchmarks.cluster` found: a row for each number of processes, and the lost node."""
    both, lost = document["processes"], document["cluster"]
    body = [
        (f"{name} process{'es' * (name != 'one')}", f"{found['mean']:.4f} ± {found['std']:.4f}")
        for name in ("one", "two")
        for found in (both[name],)
    ]
    body.append(
        (
            "difference, seed by seed",
            f"{both['mean_difference']:+.4f}, standard error {both['standard_error']:.4f}",
        )
    )
    n = len(both["one"]["accuracy"])
    packages = ", ".join(f"{name} {version}" for name, version in document["packages"].items())
    return (
        f"{markdown(('`' + both['command'] + '`', f'accuracy on test, {n} seeds'), body)}\n"
        f"A sweep of {lost['jobs']} jobs on two nodes, one of them killed: {lost['run_again']} "
        f"job(s) ran again, {lost['went_on_from_a_checkpoint']} from a checkpoint; "
        f"{lost['same_versions']} of {lost['jobs']} bundles are those of an undisturbed sweep. "
        f"Ray listened on {', '.join(lost['listening'])} and nowhere else. {document['cpu']}, "
        f"{counted(document['cores'], 'core')}, {packages}, {document['date']}."
    )


def interruptions(document: dict[str, Any]) -> str:
    """What `benchmarks.interruptions` found: a row for `train` and one for `pretrain`."""
    body = [
        (
            f"`{kind}`",
            *(
                str(found[key])
                for key in ("kills", "inside_a_write", "went_on", "same_version", "no_half_bundle")
            ),
        )
        for kind, found in document["interruptions"].items()
    ]
    header = (
        *("", "killed", "of them inside a write", "went on from a checkpoint or bundle"),
        *("ended with the same version", "no half bundle seen"),
    )
    made = document["provenance"]
    return (
        f"{markdown(header, body)}\nscikit-learn's digits at 8 px, a checkpoint after every step. "
        f"{made['cpu']}, {counted(made['cores'], 'core')}, {made['date'][:10]}, with "
        f"`{made['command']}`."
    )


def _conditions(document: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in document["packages"].items())
    load, shared = document["load_average"], ""
    if load > document["cores"] + 0.5:
        shared = f"; beside other work (load average {load:.0f}): seconds and rates are no measure"
    return f", {counted(document['cores'], 'core')}, {packages}, {document['date']}{shared}."
