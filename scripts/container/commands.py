"""docs/deploying.md as a reader follows it, on a CPU: four commands, then the self-tests."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

from container.engine import Engine, Failed, tail
from container.page import Page, without_gpu
from container.report import Report
from container.running import logs, pid


def four(engine: Engine, report: Report, page: Page, photo: Path) -> None:
    """The commands after the builds, in a reader's folder; `photo` is what is classified there."""
    folder = engine.folder / "work" / "reader"
    folder.mkdir()
    shutil.copy(photo, folder / "photo.png")
    container = ""
    try:
        with report.attempt(page.train):
            # Two epochs on digits: no GPU and no download.
            command = f"{without_gpu(page.train)} --data digits --epochs 2"
            start = time.monotonic()
            done = engine.execute(["sh", "-c", command], timeout=900, offline=True)
            report.ran(f"`{command}` ({time.monotonic() - start:.0f} s)", done)
        with report.attempt(page.locked):
            for name in ("data", "models"):
                (folder / name).mkdir()
            command = f"{page.locked} --dry-run"
            report.ran(
                f"`{command}`", engine.execute(["sh", "-c", command], timeout=200, folder=folder)
            )
        with report.attempt(page.serve):
            command = without_gpu(page.serve)
            done = engine.execute(["sh", "-c", command], offline=True)
            report.ran(f"`{command}`", done)
            container = done.stdout.strip().splitlines()[-1]
        with report.attempt(page.ask):
            # The container has no network but its own loopback, and no port of this machine.
            network = f"--net=/proc/{pid(engine, container)}/ns/net"
            inside = ["nsenter", network, "sh", "-c", page.ask]
            done = engine.execute(inside, timeout=200, folder=folder)
            said = tail(done.stdout + done.stderr + logs(engine, container))
            answer = json.loads(done.stdout) if done.returncode == 0 else []
            good = len(answer) == 5 and {"label", "score"} <= set(answer[0])
            report.check(f"`{page.ask}`: {answer[:1]}", good, said)
    finally:
        if container:
            engine.run("rm", "--force", "--time", "10", container)


def self_tests(engine: Engine, report: Report, commands: list[str]) -> None:
    """Runs the self-tests without a GPU, where they must fail, and then on the CPU."""
    for command in commands:
        tag = "serve" if " serve " in command else "train"
        with report.attempt(f"self-test of {tag}"):
            there = without_gpu(command)
            done = engine.execute(["sh", "-c", there], timeout=200, offline=True)
            explained = "error: --device cuda: " in done.stderr
            report.check(f"`{there}`: exit status 1", done.returncode == 1, done.returncode)
            report.check(f"`{there}`: says that there is no GPU", explained, tail(done.stderr))
            here = there.replace("--device cuda", "--device cpu")
            done = engine.execute(["sh", "-c", here], timeout=200, offline=True)
            lines = [line for line in done.stdout.splitlines() if line.startswith("self-test: ")]
            proved = done.returncode == 0 and " runs on cpu " in lines[0]
            if tag == "serve":
                proved = proved and all("nodes on CPUExecutionProvider" in x for x in lines[1:])
                proved = proved and len(lines) > 1
            report.check(f"`{here}`", proved, tail(done.stdout + done.stderr))


def parts(engine: Engine, report: Report, tag: str, command: str, lock: str) -> None:
    """The list of an image's parts, made by the page's command for `train`, against the lock."""
    name = f"{tag}.cdx.json"
    with report.attempt(name):
        folder = engine.folder / "sbom"
        folder.mkdir(exist_ok=True)
        for old, new in (
            (" train ", f" {tag} "),
            ("train.cdx.json", str(folder / name)),
            ("< scripts", f"< {Path(__file__).parents[1]}"),
        ):
            command = command.replace(old, new)
        done = engine.execute(["sh", "-c", command], offline=True)
        if done.returncode:
            raise Failed(tail(done.stderr))
        document = json.loads((folder / name).read_text())
        purls = [part["purl"] for part in document["components"] if "purl" in part]
        debian = [purl for purl in purls if purl.startswith("pkg:deb/")]
        python = [purl.removeprefix("pkg:pypi/") for purl in purls if purl.startswith("pkg:pypi/")]
        strange = [
            pin
            for pin in python
            if not pin.startswith("labelcurve@")
            and f"\n{pin.replace('@', '==')} " not in f"\n{lock}"
        ]
        report.check(
            f"{name}: {len(debian)} packages of Debian and {len(python)} of Python, of the lock's "
            "versions",
            len(debian) > 50 and len(python) > 20 and not strange,
            strange,
        )
