"""`make demo`: train on digits, serve, classify an image, load the service, report.

It needs no download: the digits are part of scikit-learn. All processes that it starts are stopped
when it ends, also by Ctrl-C.
"""

from __future__ import annotations

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

from labelcurve.benchmarks import cli, job
from labelcurve.benchmarks.harness import server
from labelcurve.benchmarks.harness.processes import child, labelcurve
from labelcurve.benchmarks.options import Bench
from labelcurve.bundle import command
from labelcurve.bundle.errors import LabelcurveError
from labelcurve.training.data import dataset as datasets

DATA = "digits"


@dataclass
class Demo:
    """Runs the whole product on scikit-learn's digits: train, serve, classify, load, report."""

    out: Path = Path("runs/demo")
    """Folder for the models and the report."""
    fraction: tyro.conf.UseAppendAction[tuple[float, ...]] = ()
    """Fraction of the labels; may be repeated. Default: that of `train`."""
    epochs: int = 6
    """Epochs of each fraction, few enough for a slow processor."""
    load_seconds: int = 3
    """Duration of the load test of each model."""
    step_seconds: float = 0.0
    """Duration of each step from one client to saturation; 0 omits them."""
    latency_seconds: float = 5.0
    """Duration of the session latency measurement of all models."""


def run(demo: Demo, say: Callable[[str], None]) -> None:
    """Run every step.

    Raises:
        LabelcurveError: a step failed; nothing is left running.
    """
    begin = time.monotonic()
    models = demo.out / "models"
    bench = Bench(
        models=models,
        data=DATA,
        out=demo.out,
        load_seconds=demo.load_seconds,
        step_seconds=demo.step_seconds,
        clients=(1, 4, 16),
        latency_seconds=demo.latency_seconds,
    )
    bench.check()  # before the training
    train(demo, models, say)
    data = datasets.load(DATA, say=lambda _: None)
    with server.started(models, demo.out / "serve.log", say) as service:
        classify(service.url, data, demo.out / "digit.png", say)
        bench.url = service.url
        say("")
        result, paths = job.run(bench, say, ["python", "-m", "benchmarks.demo", *sys.argv[1:]])
    cli.show(result, paths)
    say(f"Models: {models}  ({time.monotonic() - begin:.0f} s in all; everything is stopped)")
    if cli.failed(result):
        raise LabelcurveError(f"requests failed, see {paths['html']}")


def train(demo: Demo, models: Path, say: Callable[[str], None]) -> None:
    """Run `train` and show its output except the JSON document.

    Raises:
        LabelcurveError: it failed.
    """
    arguments = ["train", "--data", DATA, "--out", str(models)]
    for fraction in demo.fraction:
        arguments += ["--fraction", f"{fraction:g}"]
    arguments += ["--epochs", str(demo.epochs)]
    say(f"$ {shlex.join(['labelcurve', *arguments])}")
    with child(labelcurve(*arguments), subprocess.PIPE) as process:
        assert process.stdout is not None
        for raw in process.stdout:
            line = raw.decode(errors="replace").rstrip()
            if not line.startswith("{"):
                say(f"  {line}")
        status = process.wait()
    if status:
        raise LabelcurveError(f"train ended with status {status}")


def classify(url: str, data: datasets.Data, path: Path, say: Callable[[str], None]) -> None:
    """Write a test image to a file, post it and show the answer.

    Raises:
        LabelcurveError: the service did not answer with labels.
    """
    path.write_bytes(data.test.read(0))
    target, content = f"{url}/classify?top_k=3", path.read_bytes()
    say(f"\n$ curl --data-binary @{path} -H 'Content-Type: image/png' '{target}'")
    kind = {"Content-Type": "image/png"}
    answer = httpx.post(target, content=content, headers=kind, timeout=30, trust_env=False)
    if answer.status_code != 200:
        raise LabelcurveError(f"/classify answered {answer.status_code}: {answer.text[:500]}")
    say(f"  {answer.text.strip()}")
    model = f"{answer.headers.get('x-model-name')}@{answer.headers.get('x-model-version')}"
    say(f"  from {model}; the true class is {data.class_names[data.test.labels[0]]}")


def main(arguments: Sequence[str]) -> None:
    """The command `python -m benchmarks.demo`."""
    demo = tyro.cli(Demo, args=arguments, prog="python -m benchmarks.demo")
    run(demo, partial(print, flush=True))


if __name__ == "__main__":
    command.enter(main, extra="bench")
