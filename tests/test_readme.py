"""Every code block of the README is run, in order, as a reader would: in one folder, one shell.

Stated substitutions: `make test` is this very run, so its block is looked at and not run again;
`make demo` has another test (tests/benchmarks/test_demo.py); CIFAR-10 needs a download, so
two fractions of digits stand in for it, for one epoch, without an extractor and with a short load;
images are learned from at their 8 pixels; `train` on images has two of its fractions and two
epochs, and so has `pretrain`, not a hundred; with a trunk it has four instead of 480 minutes (the
limit is in tests/training/jobs/test_pretrain.py). `serve` runs in the background until the end. A
command that occurs twice is run once. The block with docker is that of docs/deploying.md, which
scripts/containers runs: with podman, on digits and without a GPU. What the JavaScript client sends
is in tests/serving/web: it needs further packages.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.models import digit_label, digit_png

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
GUIDE = (ROOT / "docs/guide.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README + GUIDE, re.MULTILINE | re.DOTALL)
DOCS = sorted((ROOT / "docs").glob("*.md"))
MAKE = ("make demo\n", "make test\n")
READY_SECONDS = 60


def substituted(block: str, port: int) -> str:
    block = block.replace("source .venv/bin/activate\n", "")  # the tests' environment is on PATH
    block = block.replace("127.0.0.1:3000", f"127.0.0.1:{port}")
    block = block.replace("--fraction 0.05 0.1 0.2 0.3 0.5 1", "--fraction 0.1 1")
    digits = r"\1--epochs 1 --extractor none --data digits"
    block = re.sub(r"^(labelcurve train .*)--data cifar10", digits, block, flags=re.M)
    block = re.sub(
        r"^(labelcurve train --data path/to/images)$", r"\1 --fraction 0.1 1", block, flags=re.M
    )
    block = re.sub(
        r"^(labelcurve (?:train|plan|pretrain) --data path/to/images)",
        r"\1 --image-size 8",
        block,
        flags=re.M,
    )
    block = re.sub(
        r"^(labelcurve train --data path/to/images)", r"\1 --epochs 2", block, flags=re.M
    )
    block = block.replace(
        '.train("path/to/images", ', '.train("path/to/images", image_size=8, epochs=2, '
    )
    block = block.replace("load=False)", "load=False, latency_seconds=0, robustness_images=50)")
    block = re.sub(r"^(labelcurve pretrain .*)--epochs 100", r"\1--epochs 2", block, flags=re.M)
    block = re.sub(
        r"^(labelcurve pretrain .*)--max-minutes 480", r"\1--epochs 4", block, flags=re.M
    )
    block = re.sub(r"^(labelcurve bench .*)--data cifar10", r"\1--data digits", block, flags=re.M)
    return re.sub(
        r"^labelcurve bench ",
        "labelcurve bench --load-seconds 1 --rounds 1 --latency-seconds 0 --step-seconds 0 "
        "--no-null --robustness-images 50 ",
        block,
        flags=re.M,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader's folder: three classes of digits as images, and the clone's benchmarks."""
    folder = tmp_path_factory.mktemp("reader")
    seen = dict.fromkeys(range(10), 0)
    for index in range(600):
        label = digit_label(index)
        if label < 3 and seen[label] < 30:
            seen[label] += 1
            path = folder / "path/to/images" / str(label) / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(digit_png(index))
    (folder / "image.png").write_bytes(digit_png(0))
    (folder / "another.jpg").write_bytes(digit_png(1))  # the format is sniffed, not the name
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")
    return folder


@pytest.fixture(scope="module")
def environment(folder: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "XDG_CACHE_HOME": str(folder / "cache")}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def background() -> Iterator[list[subprocess.Popen[bytes]]]:
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def wait_until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    last: Exception | None = None
    for _ in range(READY_SECONDS * 10):
        assert process.poll() is None, "serve ended before it was ready"
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5).is_success:
                return
        except httpx.TransportError as error:  # refused, closed, or no answer in time
            last = error
        time.sleep(0.1)
    raise AssertionError(f"serve was not ready after {READY_SECONDS} s: {last!r}")


def test_the_blocks_are_run_as_printed(
    folder: Path,
    environment: dict[str, str],
    background: list[subprocess.Popen[bytes]],
) -> None:
    port = free_port()
    ran: list[str] = []
    for language, block in BLOCKS:
        if block in MAKE or language in ("text", "js") or "docker " in block:
            continue
        if any(block in earlier for earlier in ran):
            continue
        text = substituted(block, port)
        if block.startswith("labelcurve serve ") and background:
            continue  # the guide continues with the service of the README
        if block.startswith("labelcurve serve "):
            serve = ["bash", "-c", f"exec {text.strip()} --port {port}"]
            background.append(subprocess.Popen(serve, cwd=folder, env=environment))
            wait_until_ready(background[-1], port)
            continue
        shell = (
            [sys.executable, "-c"] if language == "python" else ["bash", "-euo", "pipefail", "-c"]
        )
        done = subprocess.run(
            [*shell, text],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        if "/classify" in block:
            assert '"label"' in done.stdout or "label=" in done.stdout, done.stdout
            assert '"status"' not in done.stdout, done.stdout
        ran.append(block)
    assert len(ran) >= 6
    assert (folder / "runs/bench/report.html").stat().st_size > 10_000
    assert (folder / "runs/cifar10/report.json").exists()
    assert (folder / "answers.csv").read_text().count("\n") == 3


def test_the_two_make_commands_exist() -> None:
    make = shutil.which("make")
    assert make
    for block in MAKE:
        assert ("sh", block) in BLOCKS
        planned = subprocess.run(
            [make, "--dry-run", *block.split()[1:]],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert ".venv/bin/" in planned


def test_the_results_table_is_made_from_the_committed_results() -> None:
    command = [sys.executable, "-m", "labelcurve.benchmarks.study.documents", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("document", ["README.md", *(f"docs/{p.name}" for p in DOCS)])
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    for target in re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_the_figures_of_photos_are_those_of_the_committed_results() -> None:
    found = re.search(r"(\d+) % with 200 labels instead of (\d+), (\d+) % with 2,021 ", README)
    assert found is not None
    results = ROOT / "benchmarks/results"
    few, many = (
        json.loads((results / f"{name}.json").read_text())["figures"]
        for name in ("propagation", "photos")
    )
    tenth = {f["kind"]: f["accuracy"] for f in few if max(f["n_labels"]) == 200}
    (tuned,) = (f["accuracy"] for f in many if f["features"] == "fine-tuned")
    wanted = tenth["with the others"], tenth["labels alone"], tuned
    assert [int(text) for text in found.groups()] == [
        round(100 * statistics.fmean(each)) for each in wanted
    ]


def test_the_readme_has_at_most_150_lines() -> None:
    assert len(README.splitlines()) <= 150


def test_the_tree_names_every_folder_with_a_role_of_at_most_eight_words() -> None:
    tree = README.split("<!-- tree:begin -->")[1].split("<!-- tree:end -->")[0]
    assert len(tree.strip().splitlines()) - 2 <= 40  # without the fence
    listed, folder = set(), ""
    for indent, name, role in re.findall(r"^( *)(\S+) +(\S.*)$", tree, re.MULTILINE):
        assert len(role.split()) <= 8, f"{name}: {role}"
        folder = folder if indent else name
        listed.add(folder + name if indent else name)
    rooms = {
        f"{path.parent.relative_to(ROOT)}/"
        for package in ("bundle", "training", "serving", "benchmarks")
        for path in [*(ROOT / package).glob("__init__.py"), *(ROOT / package).glob("*/__init__.py")]
    }
    assert rooms <= listed
    for name in listed:
        assert (ROOT / name).exists(), name
