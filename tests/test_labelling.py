"""The loop of docs/labelling.md on digits: the commands as printed, labels revealed by this script.

Stated substitutions: 8 pixels, the shipped extractor, and one epoch of training. The round that is
printed for `round2` is repeated for `round3` and `round4`, one of them with an export of Label
Studio. The service listens on a free port. `suggest`, `plan` and `train` run in this process, from
their arguments on, since each would import torch for seconds.
"""

from __future__ import annotations

import csv
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import torch

from labelcurve.bundle import store
from labelcurve.training import embedding_options, extractors, options
from labelcurve.training.data import dataset
from labelcurve.training.jobs import plan, suggest, train
from tests.models import digit_label, digit_png
from tests.serving.conftest import Service, start_service, wait_for

DOCUMENT = (Path(__file__).parent.parent / "docs/labelling.md").read_text()
BLOCKS = re.findall(r"^```(?:sh|python)\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
EXTRACTOR = Path(extractors.__file__).with_name("cifar10.safetensors")
POOL, SENT = range(400), range(1437, 1457)
LABELS = {digit_png(i): f"digit {digit_label(i)}" for i in (*POOL, *SENT)}

__all__ = ["start_service"]
torch.set_num_threads(1)


def printed(text: str) -> str:
    """The block of the document that begins so."""
    (block,) = [block for block in BLOCKS if block.startswith(text)]
    return str(block)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for i in POOL:
        (tmp_path / "photos" / f"{i}.png").write_bytes(digit_png(i))
    return tmp_path


def run(command: str) -> None:
    """Runs a line as a reader would."""
    name, *arguments = shlex.split(command)[1:]
    arguments += ["--extractor", str(EXTRACTOR), "--image-size", "8"]
    if name == "suggest":
        suggest.run(embedding_options.parse_suggest(arguments))
    elif name == "plan":
        plan.run(embedding_options.parse_plan(arguments))
    elif name == "train":
        train.run(options.parse([*arguments, "--epochs", "1"]))
    else:
        raise AssertionError(command)


def shell(command: str, *program: str) -> None:
    """Runs a block of another program, by default of bash."""
    subprocess.run([*(program or ("bash", "-euo", "pipefail", "-c")), command], check=True)


def fill_in(table: Path) -> int:
    """Labels every row of a table, as a person does; returns how many guesses were right."""
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["label"] = LABELS[(table.parent / row["path"]).read_bytes()]
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return sum(row["guess"] == row["label"] for row in rows)


def label_studio(images: Path, export: Path) -> None:
    """JSON-MIN of a project into which a folder was uploaded."""
    tasks = [
        {"image": f"/data/upload/1/0a1b2c3d-{link.name}", "choice": LABELS[link.read_bytes()]}
        for link in sorted(images.iterdir(), reverse=True)
    ]
    export.write_text(json.dumps(tasks))


def test_from_60_labels_to_a_served_model_and_on(
    folder: Path, start_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    run(printed("labelcurve suggest --pool photos --n 60"))
    fill_in(folder / "round1/suggest.csv")
    shell(printed("cp round1/suggest.csv"))
    again, append = printed("labelcurve suggest --pool photos --data labels.csv --n").splitlines()
    right = []
    for name in ("round2", "round3", "round4"):
        run(again.replace("round2", name))
        if name == "round3":
            label_studio(folder / name / "images", folder / name / "export.json")
            shell(printed("import csv").replace("round2", name), sys.executable, "-c")
            with (folder / name / "suggest.csv").open(newline="") as file:
                labelled = {row["path"]: row["label"] for row in csv.DictReader(file)}
            assert {Path(path).read_bytes() for path in labelled} <= LABELS.keys()
            for path, label in labelled.items():
                assert label == LABELS[Path(path).read_bytes()]
        right.append(fill_in(folder / name / "suggest.csv"))
        shell(append.replace("round2", name))
    assert min(right) > 15, "the guesses are better than chance"
    labels = folder / "labels.csv"
    assert labels.read_text().count("\n") == 241
    assert len({line.split(",")[0] for line in labels.read_text().splitlines()}) == 241

    for command in printed("labelcurve plan").splitlines()[:-1]:
        run(command)
    measured, final = store.names(folder / "models")
    manifest = store.read(folder / "models", measured).manifest
    assert manifest.n_labels_train + manifest.n_labels_val + manifest.dataset.n_test == 240
    assert store.read(folder / "models", final).manifest.n_labels_train == 240

    before = labels.read_text()
    again, append = printed(
        "labelcurve suggest --pool photos --data labels.csv --models"
    ).splitlines()
    run(again)
    fill_in(folder / "round5/suggest.csv")
    shell(append)
    assert labels.read_text().count("\n") == 301
    assert len({line.split(",")[0] for line in labels.read_text().splitlines()}) == 301
    labels.write_text(before)  # what follows is printed for the table of the four rounds

    sort, _ = printed("sed ").splitlines()
    shell(sort)
    tested = dataset.load(str(folder / "tested.csv"), cache=folder / "cache", say=lambda _: None)
    assert tested.test_given
    assert (len(tested.test), tested.train.n_labelled) == (48, 192)

    serve = printed("labelcurve serve --models models --accept 0.98 --keep").split()
    assert serve[:4] == ["labelcurve", "serve", "--models", "models"]
    service = start_service(folder / "models", *serve[4:], folder=folder)
    service.wait_until_ready()
    for i in SENT:
        assert httpx.post(f"{service.url}/classify", content=digit_png(i), timeout=30).is_success
    wait_for(lambda: len(list((folder / "doubtful").glob("*.json"))) == len(SENT))
    take, append = printed("curl http://127.0.0.1:3000/doubtful.csv").splitlines()
    shell(take.replace("http://127.0.0.1:3000", service.url))
    fill_in(folder / "doubtful.csv")
    shell(append)
    more = dataset.load(str(labels), cache=folder / "cache", say=lambda _: None)
    assert more.train.n_labelled + len(more.test) == 240 + len(SENT)
