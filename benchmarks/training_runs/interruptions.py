"""Does a killed run, started again, end with the same model as an undisturbed one?

`python -m benchmarks.training_runs.interruptions` runs `train` on scikit-learn's digits
undisturbed. Then it kills such runs with SIGKILL, half of them at a random moment and half during
the write of a checkpoint, runs the same command again and compares the bundles' versions, which
are hashes of graph and manifest. After each kill every visible bundle must be complete. A few kills
of `pretrain` follow. Checkpoints are written after every step. The last line on stdout is one JSON
document.
"""

from __future__ import annotations

import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from labelcurve.benchmarks.harness import processes, provenance
from labelcurve.bundle import command, store
from labelcurve.bundle.errors import LabelcurveError

COMMON = ("--data", "digits", "--image-size", "8", "--device", "cpu", "--checkpoint-seconds", "0")
TRAIN = (
    *("train", *COMMON, "--extractor", "none", "--no-unlabelled", "--epochs", "2"),
    *("--fraction", "0.2"),
)
PRETRAIN = ("pretrain", *COMMON, "--epochs", "1")

LONGEST = 600.0
"""Time limit of a run in seconds."""


@dataclass
class Interruptions:
    """Kills training runs, starts them again and compares their bundles."""

    kills: int = 20
    """Kills of `train`, every second one during the write of a checkpoint."""
    pretrain_kills: int = 6
    """Kills of `pretrain`, likewise."""
    seed: int = 0
    """Seed of the random moments."""
    out: Path | None = None
    """Also write the JSON document to this file."""


@dataclass(frozen=True)
class Kill:
    """A kill and its outcome."""

    of: str
    inside_a_write: bool
    after_s: float
    """Seconds since the start of the process."""
    unfinished: tuple[str, ...]
    """Names of the partially written files."""
    went_on: bool
    """Whether it resumed, from a checkpoint or a bundle published before the kill."""
    same: bool
    """Whether the versions are those without a kill."""
    whole: bool
    """Whether every bundle visible after the kill was complete."""


def run(options: Interruptions) -> list[Kill]:
    """Run all kills and print a row for each."""
    moments = random.Random(options.seed)
    found: list[Kill] = []
    for base, kills in ((TRAIN, options.kills), (PRETRAIN, options.pretrain_kills)):
        if not kills:
            continue
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            expected, _ = finish(base, Path(folder))
            took = time.monotonic() - began
        print(f"{base[0]}, undisturbed: {took:.1f} s, {expected}", flush=True)
        for number in range(kills):
            after = moments.uniform(0.0, 0.95 * took)
            kill = one(base, after, number % 2 == 1, expected)
            found.append(kill)
            print(
                f"{base[0]} {number + 1:2d}: killed after {kill.after_s:5.1f} s"
                f"{', inside a write' if kill.inside_a_write else ''}"
                f"{', went on' if kill.went_on else ', from the start'}: "
                f"{'the same' if kill.same else 'OTHER VERSIONS'}"
                f"{'' if kill.whole else ', A PARTIAL BUNDLE'}",
                flush=True,
            )
    return found


def one(base: Sequence[str], after: float, inside_a_write: bool, expected: dict[str, str]) -> Kill:
    """Start a run, kill it and start it again; retry where it ended before the kill."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        killed = kill(base, folder, after, inside_a_write)
        if killed is None:
            return one(base, after / 2, inside_a_write, expected)
        whole = _whole(folder / "models")
        versions, went_on = finish(base, folder)
    return Kill(
        of=base[0],
        inside_a_write=inside_a_write,
        after_s=round(killed[0], 2),
        unfinished=killed[1],
        went_on=went_on,
        same=versions == expected,
        whole=whole,
    )


def kill(
    base: Sequence[str], folder: Path, after: float, inside_a_write: bool
) -> tuple[float, tuple[str, ...]] | None:
    """Start a run and kill it: when, and the files that it was writing; None if it ended before."""
    process = _start(base, folder)
    began = time.monotonic()
    try:
        time.sleep(after)
        while True:
            if process.poll() is not None:
                return None
            if not inside_a_write:
                break
            if _unfinished(folder):
                process.send_signal(signal.SIGSTOP)
                if _unfinished(folder):  # stopped during the write
                    break
                process.send_signal(signal.SIGCONT)
    finally:
        process.kill()
        process.communicate()
    left = _unfinished(folder)
    return time.monotonic() - began, tuple(sorted(path.name for path in left))


def finish(base: Sequence[str], folder: Path) -> tuple[dict[str, str], bool]:
    """Run to the end; return versions by name, and whether the run resumed."""
    found, said = processes.document(_start(base, folder), LONGEST)
    went_on = "resuming at epoch" in said or "was published before" in said
    if "extractor" in found:
        return {"extractor": found["extractor"]["version"]}, went_on
    return {bundle["name"]: bundle["version"] for bundle in found["bundles"]}, went_on


def _start(base: Sequence[str], folder: Path) -> subprocess.Popen[str]:
    out = folder / ("models" if base[0] == "train" else "extractor.safetensors")
    places = ("--out", str(out), "--cache", str(folder / "cache"))
    return processes.trained(processes.labelcurve(*base, *places))


def _unfinished(folder: Path) -> list[Path]:
    return [*folder.glob("models/.runs/*/.*.part"), *folder.glob(".*.part")]


def _whole(models: Path) -> bool:
    """Whether every visible bundle can be read."""
    try:
        if any(models.glob("[!.]*/current")):
            store.read_all(models)
    except LabelcurveError:
        return False
    return True


def document(kills: Sequence[Kill]) -> dict[str, object]:
    """Build the JSON document."""
    return {
        "interruptions": {
            kind: {
                "kills": len(chosen),
                "inside_a_write": sum(kill.inside_a_write for kill in chosen),
                "went_on": sum(kill.went_on for kill in chosen),
                "same_version": sum(kill.same for kill in chosen),
                "no_half_bundle": sum(kill.whole for kill in chosen),
            }
            for kind in ("train", "pretrain")
            if (chosen := [kill for kill in kills if kill.of == kind])
        },
        "commands": [f"labelcurve {' '.join(TRAIN)}", f"labelcurve {' '.join(PRETRAIN)}"],
        "provenance": provenance.here().model_dump(mode="json"),
        "kills": [asdict(kill) for kill in kills],
    }


def main(arguments: Sequence[str]) -> None:
    """The command `python -m benchmarks.training_runs.interruptions`."""
    chosen = provenance.parsed(Interruptions, arguments)
    provenance.write(chosen.out, document(run(chosen)))


if __name__ == "__main__":
    command.enter(main, extra="train")
