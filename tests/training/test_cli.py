"""`train` as a real process."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from labelcurve.bundle import store
from labelcurve.bundle.preprocess import prepare
from labelcurve.training import cli
from labelcurve.training.data import dataset
from labelcurve.training.jobs import train as job
from labelcurve.training.options import parse
from tests.training.conftest import LABELCURVE, QUICK, SMALL, TRAIN, Finished, environment, train
from tests.training.sets import digit_rows, write_folder

KEYS = {
    *(
        "name",
        "version",
        "path",
        "fraction",
        "seed",
        "n_labels_train",
        "n_labels_val",
        "val",
        "test",
    ),
    *("parity", "seconds", "epochs"),
}


def bundles(done: Finished) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = done.document["bundles"]
    return found


def test_the_last_line_is_the_document_and_nothing_else_is_json(trained: Finished) -> None:
    assert set(trained.document) == {"bundles"}
    for bundle in bundles(trained):
        assert set(bundle) == KEYS
        figures = {"accuracy", "balanced_accuracy", "f1", "precision", "recall"}
        assert set(bundle["test"]) == figures
        assert set(bundle["parity"]) == {"max_abs_diff", "top1_agreement"}
        assert figures <= set(bundle["val"])
        seconds = bundle["seconds"]
        assert {"train", "export", "evaluate", "total", "command"} == set(seconds)
        assert seconds["train"] < seconds["total"] < seconds["command"]
    assert not any(line.startswith("{") for line in trained.stdout.splitlines()[:-1])
    assert trained.stderr == ""


def test_fractions_are_published_fewest_labels_first(trained: Finished) -> None:
    assert [b["name"] for b in bundles(trained)] == ["digits-scratch-10", "digits-scratch-100"]
    assert [b["fraction"] for b in bundles(trained)] == [0.1, 1.0]
    # 1,797 digits without the fifth that is test
    small, large = bundles(trained)
    assert large["n_labels_train"] + large["n_labels_val"] == 1797 - 355
    assert small["n_labels_train"] + small["n_labels_val"] <= 0.1 * (1797 - 355)


def test_the_document_says_what_the_bundles_hold(trained: Finished) -> None:
    for entry in bundles(trained):
        bundle = store.read(trained.out, entry["name"])
        manifest = bundle.manifest
        assert bundle.version == entry["version"]
        assert str(bundle.path) == str(Path(entry["path"]).resolve())
        assert manifest.n_labels_train == entry["n_labels_train"]
        assert manifest.n_labels_val == entry["n_labels_val"]
        assert manifest.epochs == entry["epochs"] == 2
        assert manifest.test is not None
        assert manifest.test.accuracy == entry["test"]["accuracy"]
        assert manifest.predicted is not None
        assert (manifest.predicted.split, manifest.predicted.n) == ("test", manifest.test.n)
        assert sum(manifest.predicted.classes) == manifest.test.n
        assert manifest.parity.max_abs_diff == entry["parity"]["max_abs_diff"] <= 1e-4
        assert manifest.parity.top1_agreement == entry["parity"]["top1_agreement"] == 1.0
        assert manifest.parity.batch_sizes == (1, 2, 7, 32)
        assert manifest.device.value == "cpu"
        assert manifest.dataset.n_test == 355
        assert re.fullmatch("[0-9a-f]{64}", manifest.dataset.hash)
        assert {"torch", "numpy", "onnx", "labelcurve"} <= set(manifest.packages)


def test_a_bundle_is_four_files_and_its_record_has_the_history(trained: Finished) -> None:
    path = store.read(trained.out, "digits-scratch-100").path
    assert sorted(file.name for file in path.iterdir()) == [
        "README.md",
        "manifest.json",
        "model.onnx",
        "run.json",
    ]
    run = store.read_run(path)
    assert [row.epoch for row in run.history] == [1, 2]
    assert np.array(run.confusion).shape == (10, 10)
    assert np.array(run.confusion).sum() == 355
    assert run.report["3"]["support"] > 0
    assert run.command.startswith("labelcurve train --out ")
    assert "# digits-scratch-100" in (path / "README.md").read_text()


def test_what_is_printed_is_for_people(trained: Finished) -> None:
    text = trained.stdout
    assert "digits: no test split, so a stratified fifth is test: 355 of 1,797 images" in text
    assert "device: cpu (asked for; " in text
    assert re.search(r"precision: (bf16|fp32) \((the processor|avx512_bf16 is no faster)", text)
    assert re.search(r"(?m)^  1/2 ", text)
    assert text.count("published ") == 2


def test_the_published_graph_is_as_good_as_its_manifest_says(
    trained: Finished, cache: Path
) -> None:
    bundle = store.read(trained.out, "digits-scratch-100")
    test = dataset.load("digits", size=8, cache=cache, say=lambda _: None).test
    session = ort.InferenceSession(bundle.graph, providers=["CPUExecutionProvider"])
    images = np.stack([prepare(test.read(i), 8) for i in range(len(test))])
    (found,) = session.run(["probabilities"], {"images": images})
    assert bundle.manifest.test is not None
    assert float((found.argmax(1) == test.labels).mean()) == pytest.approx(
        bundle.manifest.test.accuracy
    )


def test_nothing_of_the_machine_is_in_graph_or_manifest(trained: Finished) -> None:
    for entry in bundles(trained):
        for name in ("model.onnx", "manifest.json"):
            content = Path(entry["path"], name).read_bytes()
            host = f'"{os.uname().nodename}"'
            for secret in (host, str(trained.out), str(Path(__file__).parents[2])):
                assert secret.encode() not in content


def on_a_terminal(command: Sequence[str], env: dict[str, str]) -> tuple[int, str]:
    """Exit status and output of a command whose stdout is a terminal, without control codes."""
    ours, theirs = pty.openpty()
    said = b""
    with subprocess.Popen(command, stdout=theirs, env=env | {"COLUMNS": "200"}) as process:
        os.close(theirs)
        while True:
            try:
                said += os.read(ours, 65536)
            except OSError:  # EIO: the other end is closed
                break
    os.close(ours)
    return process.returncode, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode())


def test_the_same_seed_gives_the_same_version_alone_and_on_a_terminal_a_table_comes_last(
    tmp_path: Path, cache: Path, trained: Finished
) -> None:
    # In the other run the same fraction came with another one, from another process, and git
    # reported another commit.
    command = [*TRAIN, "--out", str(tmp_path), "--cache", str(cache), *QUICK, "--fraction", "0.1"]
    code, text = on_a_terminal(command, environment(cache) | {"LABELCURVE_COMMIT": "another"})
    assert code == 0, text
    bundle = store.read(tmp_path, "digits-scratch-10")
    assert bundle.version == bundles(trained)[0]["version"]
    assert store.read_run(bundle.path).git_commit == "another"
    assert bundle.manifest.test is not None
    table = text[text.rindex("accuracy") :]
    assert "digits-scratch-10" in table
    assert f"{bundle.manifest.test.accuracy * 100:.2f} % (test)" in table
    assert '{"' not in text


def test_the_reference_preset_publishes_too_and_test_can_stay_unread(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--preset", "reference", "--no-test", "--fraction", "0.1", "--out", str(tmp_path))
    (entry,) = job.run(parse([*QUICK, *given, "--cache", str(cache)]))["bundles"]
    assert entry["name"] == "digits-reference-scratch-10"
    assert entry["test"] is None
    bundle = store.read(tmp_path, "digits-reference-scratch-10")
    assert bundle.manifest.test is None
    assert bundle.manifest.predicted is not None
    assert bundle.manifest.predicted.split == "validation"
    assert bundle.manifest.backbone == "reference"
    assert sum(map(sum, store.read_run(bundle.path).confusion)) == entry["n_labels_val"]
    assert "validation: accuracy" in capsys.readouterr().out
    assert "left unread" in (bundle.path / "README.md").read_text()


@pytest.fixture
def table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[dict[str, Any]], list[list[str]]]:
    """The cells of the table that is shown on a terminal, row by row."""
    monkeypatch.setenv("COLUMNS", "200")

    def cells(document: dict[str, Any]) -> list[list[str]]:
        cli._show(document)
        lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
        return [re.split(r" {2,}", line) for line in lines if line.strip("─ ")]

    return cells


def test_the_table_of_bundles_counts_all_labels_and_says_what_was_measured(
    table: Callable[[dict[str, Any]], list[list[str]]],
) -> None:
    def bundle(name: str, test: float | None, **more: Any) -> dict[str, Any]:
        judged = {"test": None if test is None else {"accuracy": test}, "val": {"accuracy": 0.5}}
        return {"name": name, "path": f"models/{name}", **judged, **more}

    counts = {"n_labels_train": 4500, "n_labels_val": 500}
    document = {
        "bundles": [bundle("a-10", 0.9012, **counts), bundle("a-20", None, **counts)],
        "final": [bundle("a-final", 0.95, **counts, measured={"name": "a-100"})],
    }
    assert table(document) == [
        ["model", "labels", "accuracy", "path"],
        ["a-10", "5,000", "90.12 % (test)", "models/a-10"],
        ["a-20", "5,000", "50.00 % (validation)", "models/a-20"],
        ["a-final", "5,000", "95.00 % (test of a-100)", "models/a-final"],
    ]
    assert table({**document, "summary": {}}) == []
    variant = {"precision": "int8", "test": {"accuracy": 0.8}, "val": {"accuracy": 0.5}}
    assert table({"bundles": [bundle("a-10", 0.9, variant=variant)]}) == [
        ["model", "precision", "accuracy", "path"],
        ["a-10", "int8", "80.00 % (test)", "models/a-10"],
    ]


def test_the_table_of_an_audit_says_how_many_are_not_in_it(
    table: Callable[[dict[str, Any]], list[list[str]]],
) -> None:
    row = {"path": "1.png", "label": "cat", "suggested": "dog", "score": 0.987, "reason": "answer"}
    for doubtful, more in ((1, []), (1235, [["and 1,234 more"]])):
        assert table({"audit": "a.csv", "first": [row], "doubtful": doubtful}) == [
            ["image", "label", "suggested", "score", "reason"],
            ["1.png", "cat", "dog", "0.99", "answer"],
            *more,
        ]


def test_brackets_and_colons_in_names_are_no_markup(
    table: Callable[[dict[str, Any]], list[list[str]]],
) -> None:
    names = {"path": "[/a]/[red]1.png", "label": "[b]", "suggested": ":cat:"}
    row = {**names, "score": 0.5, "reason": "answer"}
    found = table({"audit": "a.csv", "first": [row], "doubtful": 1})
    assert found[1] == [*names.values(), "0.50", "answer"]


def test_the_table_of_an_extractor_has_a_dash_for_what_was_not_measured(
    table: Callable[[dict[str, Any]], list[list[str]]],
) -> None:
    made = {"path": "a.safetensors", "epochs": 2.5, "knn": 0.9012, "probe": None}
    assert table({"extractor": made}) == [
        ["extractor", "epochs", "k-NN", "linear probe"],
        ["a.safetensors", "2.5", "90.12 %", "–"],
    ]


def test_a_dry_run_counts_the_labels_and_writes_nothing(tmp_path: Path, cache: Path) -> None:
    done = train(tmp_path / "models", cache, "--data", "digits", "--dry-run")
    assert done.code == 0, done.stderr
    assert not (tmp_path / "models").exists()
    plans = done.document["dry_run"]
    assert [plan["fraction"] for plan in plans] == [0.05, 0.1, 0.2, 0.3, 0.5, 1.0]
    for plan in plans:
        assert sum(c["train"] for c in plan["classes"].values()) == plan["n_labels_train"]
        assert sum(c["val"] for c in plan["classes"].values()) == plan["n_labels_val"]
        assert all(c["train"] >= 1 and c["val"] >= 1 for c in plan["classes"].values())
    assert re.search(r"(?m)^total .* 1,\d\d\d \+ +\d+$", done.stdout)


@pytest.mark.parametrize(
    ("wrong", "right"), [("--fractions", "--fraction"), ("--epoch", "--epochs")]
)
def test_an_unknown_option_exits_2_and_proposes_the_right_one(
    tmp_path: Path, cache: Path, wrong: str, right: str
) -> None:
    done = train(tmp_path, cache, wrong, "1")
    assert done.code == 2
    assert done.stdout == ""
    assert re.search(rf"{right}\b", done.stderr)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--fraction", "2"), "error: --fraction 2: allowed are values above 0 and up to 1"),
        (("--data", "nowhere"), "error: --data nowhere: no such folder. Allowed: cifar10, digits"),
    ],
)
def test_an_explained_error_exits_1_without_a_traceback(
    tmp_path: Path, cache: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = train(tmp_path, cache, *arguments)
    assert done.code == 1
    assert done.stderr.startswith(message)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_folder_with_bad_images_is_trained_on_once_they_are_skipped(
    tmp_path: Path, cache: Path
) -> None:
    folder = write_folder(tmp_path / "mine", digit_rows(30)[:90])
    (folder / "1" / "bad.png").write_bytes(b"no image")
    options = ("--data", str(folder), "--epochs", "1", "--fraction", "1", "--image-size", "8")
    refused = train(tmp_path / "models", cache, *options)
    assert refused.code == 1
    assert str(folder / "1" / "bad.png") in refused.stderr
    assert "--skip-unreadable" in refused.stderr
    done = train(tmp_path / "models", cache, *options, "--skip-unreadable")
    assert done.code == 0, done.stderr
    assert "1 unreadable image left out" in done.stdout
    assert "extractor: none (72 images are too few to train one on)" in done.stdout
    assert store.read(tmp_path / "models", "mine-100").manifest.class_names == ("0", "1", "2")


def test_memory_that_is_too_small_for_torch_is_an_error(cache: Path) -> None:
    limited = f"ulimit -v 600000; exec {LABELCURVE} train --data digits --dry-run"
    done = subprocess.run(
        ["sh", "-c", limited], capture_output=True, text=True, env=environment(cache), check=False
    )
    assert done.returncode == 1
    assert "error: no memory is left (libtorch" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_it_and_leaves_no_half_bundle(
    tmp_path: Path, cache: Path, signum: signal.Signals, code: int
) -> None:
    command = [*TRAIN, "--out", str(tmp_path), "--cache", str(cache), *SMALL, "--epochs", "5000"]
    command += ["--fraction", "0.1", "--no-unlabelled", "--extractor", "none"]
    # The tests themselves may run under nohup, which `train` would respect.
    process = subprocess.Popen(
        ["env", "--default-signal=HUP", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(cache),
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("  1/5000"):
                break
        process.send_signal(signum)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == code
    assert "stopped; bundles already published are kept" in stderr
    assert "resumes from here" in stderr
    assert "Traceback" not in stderr
    assert [entry.name for entry in tmp_path.iterdir()] == [".runs"]


def test_the_document_survives_a_strict_json_reader(trained: Finished) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    json.loads(trained.stdout.splitlines()[-1], parse_constant=refuse)


def test_data_that_is_not_there_is_said_before_torch_is_imported() -> None:
    code = """
import sys
from labelcurve.bundle.errors import DataError
from labelcurve.training import cli

try:
    cli.train(["--data", "nowhere"])
except DataError as error:
    print(error)
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--data nowhere: no such folder. Allowed: cifar10, digits" in done.stdout
