from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from labelcurve.bundle.errors import LabelcurveError
from labelcurve.training.options import Options, PretrainOptions, parse, parse_pretrain
from labelcurve.training.sweep_options import parse_sweep


def parsed(*arguments: str) -> Options:
    return parse(arguments)


def parsed_pretrain(*arguments: str) -> PretrainOptions:
    return parse_pretrain(arguments)


def test_the_defaults_are_the_main_job() -> None:
    options = parsed()
    assert options.fractions == (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
    assert options.data == "cifar10"
    assert options.out == Path("models")
    assert options.device == "auto"
    assert options.preset == "default"
    assert options.extractor == "auto"
    assert options.max_minutes is None
    assert not options.no_unlabelled
    assert not options.no_test


def test_fractions_are_repeatable_sorted_and_each_once() -> None:
    options = parsed(*("--fraction", "1"), *("--fraction", "0.1"), *("--fraction", "1.0"))
    assert options.fractions == (0.1, 1.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"fraction": (0.0,)}, "--fraction 0: allowed are values above 0 and up to 1"),
        ({"fraction": (0.1, 1.5)}, "--fraction 1.5: allowed are values above 0 and up to 1"),
        ({"fraction": (-0.1,)}, "--fraction -0.1: allowed are values above 0 and up to 1"),
        ({"fraction": (float("nan"),)}, "--fraction nan: allowed are values above 0 and up to 1"),
        (
            {"fraction": (0.1, 0.1 + 1e-9)},
            "--fraction: two of them would have the same bundle's name, NAME-10: give one",
        ),
        ({"epochs": 0}, "--epochs 0: allowed are 1 and more"),
        ({"seed": -1}, "--seed -1: allowed are 0 to 4294967295"),
        (
            {"seed": 2**32 - 2, "seeds": 3},
            "--seed 4294967294: allowed are 0 to 4294967293 (with --seeds 3)",
        ),
        ({"seed": 2**32}, "--seed 4294967296: allowed are 0 to 4294967295"),
        ({"seeds": 0}, "--seeds 0: allowed are 1 and more"),
        ({"checkpoint_seconds": -1.0}, "--checkpoint-seconds -1: allowed are 0 and more"),
        ({"image_size": 7}, "--image-size 7: allowed are 8 to 1024 pixels"),
        ({"image_size": 1025}, "--image-size 1025: allowed are 8 to 1024 pixels"),
        ({"max_minutes": 0.0}, "--max-minutes 0: allowed are values above 0"),
        ({"max_minutes": -1.5}, "--max-minutes -1.5: allowed are values above 0"),
        ({"max_minutes": float("nan")}, "--max-minutes nan: allowed are values above 0"),
        ({"max_minutes": float("inf")}, "--max-minutes inf: allowed are values above 0"),
        ({"name": "a" * 201}, "aaa': allowed are up to 200 letters, digits, dots, underscores and"),
        ({"name": "a/b"}, "--name 'a/b': allowed are up to 200 letters"),
        ({"name": "-a"}, "and hyphens, a letter or digit first"),
        (
            {"max_minutes": 5.0, "epochs": 3},
            "--epochs and --max-minutes exclude each other: give one of them",
        ),
        ({"mirror": True, "no_flip": True}, "--mirror and --no-flip: such images"),
        ({"mirror": True, "data": "digits"}, "--mirror and --data digits: digits are not"),
        ({"mirror": True, "preset": "reference"}, "--mirror and --preset reference: the exper"),
        ({"mirror": True, "max_latency": 1.0}, "--mirror and --max-latency: it doubles the"),
    ],
)
def test_a_bad_value_names_the_flag_the_value_and_what_is_allowed(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(LabelcurveError, match=re.escape(message)):
        Options(**values)


@pytest.mark.parametrize(
    "words",
    [
        "--seed 3 --fraction 0.1 0.5 1 --no-test",
        "--fraction=0.1 0.5 --fraction 1 --seed 3 --no-test",
        "--fraction 0.1 --fraction 0.5 --fraction 1 --no-test --seed 3",
    ],
)
def test_several_fractions_follow_the_option_or_repeat_it(words: str) -> None:
    chosen = parse(words.split())
    assert (chosen.fraction, chosen.seed, chosen.no_test) == ((0.1, 0.5, 1.0), 3, True)


def test_a_value_that_no_option_takes_is_an_error_still(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--seed", "3", "4"])
    assert "4" in capsys.readouterr().err


def test_a_sweep_takes_several_data_sets_and_fractions_too() -> None:
    chosen, others = parse_sweep(["--data", "a", "b", "--fraction", "0.1", "0.5", "--epochs", "3"])
    assert (chosen.data, chosen.fraction, others) == (("a", "b"), (0.1, 0.5), ["--epochs", "3"])


@pytest.mark.parametrize("values", [{"fraction": (1.0,)}, {"image_size": 8}, {"image_size": 1024}])
def test_the_ends_of_the_ranges_are_allowed(values: dict[str, Any]) -> None:
    Options(**values)


def test_every_option_has_its_line_of_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        parsed("--help")
    text = capsys.readouterr().out
    for name in vars(Options()):
        assert text.count(f" --{name.replace('_', '-')} ") == 1
    groups = ["image options", "label options", "training options", "output options"]
    assert [text.count(group) for group in groups] == [1, 1, 1, 1]
    assert "Fine-tunes a classifier on fractions of the labels" in text
    assert "cifar10" in text
    assert "~/.cache/labelcurve" in text


def test_the_defaults_of_pretrain_are_the_main_job_too() -> None:
    options = parsed_pretrain()
    assert options.data == "cifar10"
    assert options.objective == "contrastive"
    assert options.out is None
    assert options.epochs is None
    assert options.max_minutes is None
    assert not options.unlabelled
    assert not options.fresh


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0.0}, "--epochs 0: allowed are values above 0"),
        ({"epochs": -0.5}, "--epochs -0.5: allowed are values above 0"),
        ({"epochs": float("inf")}, "--epochs inf: allowed are values above 0"),
        ({"epochs": float("nan")}, "--epochs nan: allowed are values above 0"),
        ({"max_minutes": 0.0}, "--max-minutes 0: allowed are values above 0"),
        ({"max_minutes": float("inf")}, "--max-minutes inf: allowed are values above 0"),
        (
            {"max_minutes": 5.0, "epochs": 3.0},
            "--epochs and --max-minutes exclude each other: give one of them",
        ),
        ({"out": Path("a.pt")}, "--out a.pt: allowed is a file name in .safetensors"),
        ({"out": Path("folder")}, "--out folder: allowed is a file name in .safetensors"),
        ({"seed": -1}, "--seed -1: allowed are 0 to 4294967295"),
        ({"seed": 2**32}, "--seed 4294967296: allowed are 0 to 4294967295"),
        ({"image_size": 7}, "--image-size 7: allowed are 8 to 1024 pixels"),
    ],
)
def test_a_bad_value_of_pretrain_names_the_flag_the_value_and_what_is_allowed(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(LabelcurveError, match=re.escape(message)):
        PretrainOptions(**values)


def test_a_folder_is_no_place_for_an_extractor(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").mkdir()
    with pytest.raises(LabelcurveError, match=r"a\.safetensors: allowed is a file name"):
        PretrainOptions(out=tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "arguments", [("--epochs", "0.5"), ("--max-minutes", "0.1"), ("--out", "a/b.safetensors")]
)
def test_parts_of_an_epoch_and_of_a_minute_are_allowed(arguments: tuple[str, str]) -> None:
    assert parsed_pretrain(*arguments) != parsed_pretrain()


def test_every_option_of_pretrain_has_its_line_of_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        parsed_pretrain("--help")
    text = capsys.readouterr().out
    for name in vars(PretrainOptions()):
        assert f"--{name.replace('_', '-')}" in text
    assert "relative-position" in text


def test_several_seeds_follow_each_other() -> None:
    assert list(parsed("--seed", "3", "--seeds", "3").all_seeds) == [3, 4, 5]
    assert list(parsed().all_seeds) == [0]


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("--fractions", "--fraction"), ("--checkpoint-second", "--checkpoint-seconds")],
)
def test_a_typing_error_proposes_the_right_option(
    wrong: str, right: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parsed(wrong, "1")
    assert re.search(rf"{right}\b", capsys.readouterr().err)
