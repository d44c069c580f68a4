"""`make demo`: trains on digits, serves, classifies one image, loads the service, reports.

Needs nothing but the environment: the digits are part of scikit-learn. Whatever it starts is
stopped when it ends, also by Ctrl-C.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import tyro

from benchmarks import cli, job, server
from benchmarks.options import Bench
from benchmarks.processes import child, command, end_on_signals
from bundle.errors import LabelcurveError
from training import data as datasets

DATA = "digits"


@dataclass
class Demo:
    """The whole product on scikit-learn's digits: train, serve, classify, load, report."""

    out: Path = Path("runs/demo")
    """Folder for the models and the report."""
    fraction: tyro.conf.UseAppendAction[tuple[float, ...]] = ()
    """Share of the labels; may be repeated. Without it: what `train` takes without it."""
    epochs: int = 6
    """Of each fraction: digits are learnt by then, and a slow processor is done in time, too."""
    load_seconds: int = 3
    """Load for each model."""
    step_seconds: float = 0.0
    """Length of each step from one client to saturation; 0, the default, leaves them out."""
    latency_seconds: float = 5.0
    """Session latency of all models together."""


def run(demo: Demo, say: Callable[[str], None]) -> None:
    """Runs every step.

    Raises:
        LabelcurveError: a step failed; nothing is left running.
    """
    begin = time.monotonic()
    models = demo.out / "models"
    train(demo, models, say)
    data = datasets.load(DATA, say=lambda _: None)
    with server.started(models, demo.out / "serve.log", say) as service:
        classify(service.url, data, demo.out / "digit.png", say)
        bench = Bench(
            models=models,
            data=DATA,
            url=service.url,
            out=demo.out,
            load_seconds=demo.load_seconds,
            step_seconds=demo.step_seconds,
            clients=(1, 4, 16),
            latency_seconds=demo.latency_seconds,
        )
        say("")
        result, paths = job.run(bench, say, ["python", "-m", "benchmarks.demo", *sys.argv[1:]])
    cli.show(result, paths)
    say(f"Models: {models}  ({time.monotonic() - begin:.0f} s in all; everything is stopped)")
    if cli.failed(result):
        raise LabelcurveError(f"requests failed, see {paths['html']}")


def train(demo: Demo, models: Path, say: Callable[[str], None]) -> None:
    """Runs `train`; its lines are shown but for the last, which is for programs.

    Raises:
        LabelcurveError: it failed.
    """
    arguments = ["train", "--data", DATA, "--out", str(models)]
    for fraction in demo.fraction:
        arguments += ["--fraction", f"{fraction:g}"]
    arguments += ["--epochs", str(demo.epochs)]
    say(f"$ {shlex.join(arguments)}")
    with child([command("train"), *arguments[1:]], subprocess.PIPE) as process:
        assert process.stdout is not None
        for raw in process.stdout:
            line = raw.decode(errors="replace").rstrip()
            if not _is_document(line):
                say(f"  {line}")
        status = process.wait()
    if status:
        raise LabelcurveError(f"train ended with status {status}")


def classify(url: str, data: datasets.Data, path: Path, say: Callable[[str], None]) -> None:
    """Writes a test image to a file, posts it and shows the answer.

    Raises:
        LabelcurveError: the service did not answer with labels.
    """
    path.write_bytes(data.test.read(0))
    target = f"{url}/classify?top_k=3"
    say(f"\n$ curl --data-binary @{path} -H 'Content-Type: image/png' '{target}'")
    answer = httpx.post(
        target,
        content=path.read_bytes(),
        headers={"Content-Type": "image/png"},
        timeout=30,
        trust_env=False,
    )
    if answer.status_code != 200:
        raise LabelcurveError(f"/classify answered {answer.status_code}: {answer.text[:500]}")
    say(f"  {answer.text.strip()}")
    model = f"{answer.headers.get('x-model-name')}@{answer.headers.get('x-model-version')}"
    say(f"  from {model}; the true class is {data.class_names[data.test.labels[0]]}")


def _is_document(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def main(args: Sequence[str] | None = None) -> None:
    """The command `python -m benchmarks.demo`."""
    demo = tyro.cli(Demo, args=args, prog="python -m benchmarks.demo")
    end_on_signals()
    try:
        run(demo, partial(print, flush=True))
    except LabelcurveError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
