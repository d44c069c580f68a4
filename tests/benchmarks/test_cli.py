from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from labelcurve.benchmarks import cli, job
from labelcurve.benchmarks.harness.server import Server
from labelcurve.benchmarks.options import Bench
from labelcurve.benchmarks.record import Report
from labelcurve.benchmarks.report import tables
from labelcurve.bundle import store
from labelcurve.bundle.errors import LabelcurveError
from labelcurve.bundle.manifest import Measured
from labelcurve.bundle.store import Bundle
from labelcurve.training.data.dataset import Data
from tests.benchmarks.running import interrupted
from tests.models import publish_digits


def options(models: Path, cache: Path, out: Path, *more: str) -> list[str]:
    common = ["--models", str(models), "--data", "digits", "--cache", str(cache)]
    short = ["--out", str(out), "--latency-seconds", "0", "--robustness-images", "50"]
    return [*common, *short, *more]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "labelcurve", "bench", *arguments],
        capture_output=True,
        text=True,
        timeout=300,  # a bound, not a measurement
        check=False,
    )


def test_measures_every_model_and_ends_with_one_document(
    digits_models: Path, cache: Path, tmp_path: Path, bundles: list[Bundle]
) -> None:
    load = ["--load-seconds", "1", "--rounds", "1", "--users", "2", "--step-seconds", "1"]
    load += ["--clients", "2"]
    done = bench(*options(digits_models, cache, tmp_path, *load))
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert [model["name"] for model in document["models"]] == [b.name for b in bundles]
    for model in document["models"]:
        assert model["accuracy"]["n"] == 355
        assert model["latency"]["batches"][0]["p50_ms"] > 0
        assert model["load"]["errors"] == 0
        assert model["load"]["server_cpu_ms"] > 0
        assert model["load"]["stages"]["encode"]["mean_ms"] > 0
    assert document["saturation"]["model"] == "digits-100"
    assert [step["users"] for step in document["saturation"]["steps"]] == [2]
    assert document["null"]["load"]["errors"] == 0
    assert document["provenance"]["command"].startswith("labelcurve bench --models")
    report = Report.model_validate_json(Path(document["report"]["json"]).read_bytes())
    assert [model.version for model in report.models] == [b.version for b in bundles]
    people = done.stdout.splitlines()[:-1]
    assert any("requests/s" in line for line in people)
    # The test models were not trained on this split, and bench must report it.
    assert any("NOT the data of the training" in line for line in people)
    assert "data:image" in Path(document["report"]["html"]).read_text()
    assert "stopped" in (tmp_path / "serve.log").read_text()


def test_one_model_without_load_and_pictures(
    digits_models: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--only", "digits-50", "--no-load", "--no-examples"]
    cli.main(options(digits_models, cache, tmp_path, *more))
    (model,) = json.loads(capsys.readouterr().out.splitlines()[-1])["models"]
    assert model["name"] == "digits-50"
    assert model["load"] is None
    assert "data:image" not in (tmp_path / "report.html").read_text()


def test_a_model_that_has_learned_from_the_test_images_is_left_out(
    digits_models: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tmp_path / "models"
    before = store.read(digits_models, "digits-50")
    record = store.read_run(before.path)
    measured = Measured(
        name=before.name, version=before.version, graph_hash="", n_labels_train=1, n_labels_val=1
    )
    final = {"name": "digits-final", "measured": measured}
    store.publish(models, before.manifest.model_copy(update=final), before.graph, "", record)
    with pytest.raises(LabelcurveError, match="no model is left to measure"):
        cli.main(options(models, cache, tmp_path, "--no-load"))
    store.publish(models, before.manifest, before.graph, "", record)
    more = ["--no-load", "--no-examples", "--url", "http://127.0.0.1:9"]
    cli.main(options(models, cache, tmp_path, *more))
    out = capsys.readouterr().out
    (model,) = json.loads(out.splitlines()[-1])["models"]
    assert model["name"] == "digits-50"
    assert "digits-final: left out, since it was also trained on the test images" in out
    assert "--url is not used: without the load test no service is asked" in out


def test_a_damaged_model_is_named_with_the_way_around_it(
    digits_models: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = shutil.copytree(digits_models, tmp_path / "models", symlinks=True)
    (models / "digits-50" / store.CURRENT / store.GRAPH).write_bytes(b"damaged")
    with pytest.raises(LabelcurveError, match=r"digits-50/.* is damaged: .*--only NAME"):
        cli.main(options(models, cache, tmp_path, "--no-load"))
    load = ["--load-seconds", "1", "--rounds", "1", "--step-seconds", "0", "--no-null"]
    only = ["--only", "digits-10"]
    cli.main(options(models, cache, tmp_path, *only, *only, *load))
    (model,) = json.loads(capsys.readouterr().out.splitlines()[-1])["models"]
    assert model["name"] == "digits-10"


def test_what_it_started_ends_with_it(digits_models: Path, cache: Path, tmp_path: Path) -> None:
    arguments = options(digits_models, cache, tmp_path, "--load-seconds", "60")
    command = ["bench", *arguments]
    ended = interrupted("labelcurve", command, "serve is ready", signal.SIGTERM)
    assert ended.status == 128 + signal.SIGTERM, ended.output
    assert "Traceback" not in ended.output
    assert ended.children
    assert not ended.survivors()
    assert not (tmp_path / "report.html").exists()


def test_another_service_is_refused(service: Server, tmp_path: Path) -> None:
    publish_digits(tmp_path, fraction=0.2)
    with pytest.raises(LabelcurveError, match="does not serve digits-20@"):
        job.run(Bench(models=tmp_path, data="digits", url=service.url), print)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["comprae"], "no command `bench comprae` .perhaps you meant compare"),
        (["--only", "other"], "--only other: no such model; there are digits-10"),
        (["--users", "0"], "--users 0: allowed are 1 and more"),
        (["--rounds", "0"], "--rounds 0: allowed are 1 and more"),
        (["--load-seconds", "0"], "--load-seconds 0: allowed are 1 and more"),
        (["--latency-seconds", "-1"], "--latency-seconds -1"),
        (["--models", "nowhere"], "no folder nowhere"),
        (["--data", "nowhere"], "nowhere"),
        (["--target", "95"], "--target 95: allowed are values between 0 and 1"),
        (["--step-seconds", "0.5"], "--step-seconds 0.5: allowed are 1 and more"),
        (["--clients", "64", "8"], "--clients 64 8: allowed are rising numbers"),
        (["--price-per-hour", "-1"], "--price-per-hour -1"),
        (["--price-per-label", "inf"], "--price-per-label inf"),
        (["--step-seconds", "nan"], "--step-seconds nan"),
        (["--robustness-images", "-1"], "--robustness-images -1"),
        (["--url", "127.0.0.1:1"], "http://HOST:PORT"),
    ],
)
def test_errors_name_what_is_wrong(
    more: list[str], message: str, digits_models: Path, cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(LabelcurveError, match=message):
        cli.main(more if more == ["comprae"] else options(digits_models, cache, tmp_path, *more))


def test_failed_requests_fail_the_command(measured: Report) -> None:
    from tests.benchmarks.samples import LOAD

    assert not cli.failed(measured)
    model = measured.models[0].model_copy(update={"load": LOAD})
    assert cli.failed(measured.model_copy(update={"models": (model,)}))


@pytest.mark.parametrize("terminal", [False, True])
def test_no_column_is_cut_in_a_log_or_a_narrow_terminal(
    measured: Report,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    terminal: bool,
) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    models = [m.model_copy(update={"seed": seed}) for m in measured.models for seed in (0, 1)]
    several = measured.model_copy(update={"models": tuple(models)})
    cli.show(several, {"html": tmp_path})
    out = capsys.readouterr().out
    assert "…" not in out
    assert all(cell in out for row in tables.rows(several) for cell in row)


def test_models_of_other_networks_sizes_or_names_are_no_seeds(bundles: list[Bundle]) -> None:
    def named(name: str, seed: int = 0, size: int = 8, backbone: str = "convnet") -> Bundle:
        manifest = bundles[0].manifest
        pixels = manifest.preprocessing.model_copy(update={"size": size})
        changed = {"name": name, "seed": seed, "preprocessing": pixels, "backbone": backbone}
        return replace(bundles[0], manifest=manifest.model_copy(update=changed))

    seeds = [named("a-10"), named("a-10-s1", 1)]
    assert job.besides(seeds) == {"a-10": "", "a-10-s1": ""}
    assert job.one_seed(seeds) == seeds[:1]
    changed = {"name": "c-10", "recipe": {"mirrored": True}}
    mirrored = replace(seeds[0], manifest=seeds[0].manifest.model_copy(update=changed))
    for other, words in (
        (mirrored, ["", "", "mirrored"]),
        (named("b-10", size=24), ["8 px", "8 px", "24 px"]),
        (named("b-10", backbone="resnet18"), ["convnet", "convnet", "resnet18"]),
        (named("b-10"), ["a", "a", "b"]),
        (named("a-2-10"), ["a", "a", "a-2"]),
    ):
        assert list(job.besides([*seeds, other]).values()) == words
        assert job.one_seed([*seeds, other]) == [seeds[0], other]


def test_the_way_to_saturation_is_that_of_the_models_that_the_report_leads_with(
    bundles: list[Bundle],
) -> None:
    def made(name: str, preset: str, labels: int) -> Bundle:
        changed = {"name": name, "preset": preset, "n_labels_train": labels}
        manifest = bundles[0].manifest.model_copy(update=changed)
        return replace(bundles[0], manifest=manifest)

    ours, more = made("a-10", "default", 90), made("a-50", "default", 450)
    theirs = made("a-reference-100", "reference", 900)
    assert job.leading([ours, more, theirs]) is more
    assert job.leading([theirs]) is theirs


def test_a_model_that_is_swapped_during_the_load_is_named(
    bundles: list[Bundle],
    data: Data,
    service: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(job, "_loads", lambda *_: ({}, {}))
    chosen = Bench(null=False, latency_seconds=0)
    for version, swapped in ((bundles[0].version, False), ("0123456789ab", True)):
        one = replace(bundles[0], version=version)
        given = (chosen, [one], service, data, {one.name: None}, lambda _: None)
        doubts = job._timings(*given)[3]  # type: ignore[arg-type]
        assert [f"swapped {one.name}@{version}" in text for text in doubts] == [True] * swapped
