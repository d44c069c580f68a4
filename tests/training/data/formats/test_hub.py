from __future__ import annotations

from pathlib import Path

import pytest

from labelcurve.bundle.errors import DataError
from labelcurve.training.data.formats import hub
from labelcurve.training.data.source import LeftOut


def touch(root: Path, *files: str) -> None:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()


def splits(root: Path) -> tuple[dict[str, list[str]], list[LeftOut], list[str]]:
    said: list[str] = []
    found, left_out = hub.by_split(root, said.append)
    shown = {s: [str(f.relative_to(root)) for f in files] for s, files in found.items()}
    return shown, left_out, said


@pytest.mark.parametrize("name", ["test", "testing", "eval", "evaluation"])
def test_each_word_of_the_hub_for_test_is_test(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "train-00000-of-00001.parquet", f"{name}-00000-of-00001.parquet")
    found, left_out, said = splits(tmp_path)
    assert found == {
        "train": ["train-00000-of-00001.parquet"],
        "test": [f"{name}-00000-of-00001.parquet"],
    }
    assert (left_out, said) == ([], [])


@pytest.mark.parametrize("name", ["validation", "valid", "val", "dev"])
def test_validation_files_are_test_where_there_is_none_and_else_train(
    tmp_path: Path, name: str
) -> None:
    touch(tmp_path, "train.parquet", f"{name}.parquet")
    found, _, said = splits(tmp_path)
    assert found == {"train": ["train.parquet"], "test": [f"{name}.parquet"]}
    assert said == [f"{tmp_path}: no test split, so the validation files are test ({name}.parquet)"]
    touch(tmp_path, "test.parquet")
    found, _, said = splits(tmp_path)
    assert found == {"train": ["train.parquet", f"{name}.parquet"], "test": ["test.parquet"]}
    assert said == [
        f"{tmp_path}: the validation files ({name}.parquet) join the training files, of whose rows "
        "a tenth is held out for validation"
    ]


def test_files_of_no_split_beside_others_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "train.parquet", "holdout.parquet", ".hidden/test.parquet")
    found, left_out, _ = splits(tmp_path)
    assert found == {"train": ["train.parquet"]}
    assert left_out == [
        LeftOut(str(tmp_path / "holdout.parquet"), "Parquet files of no split by their names")
    ]


def test_folders_of_splits_count_at_any_depth(tmp_path: Path) -> None:
    touch(tmp_path, "default/train/0000.parquet", "default/train/part/1.parquet")
    touch(tmp_path, "default/test/0000.parquet")
    assert splits(tmp_path)[0] == {
        "train": ["default/train/0000.parquet", "default/train/part/1.parquet"],
        "test": ["default/test/0000.parquet"],
    }


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (("en/train/0.parquet", "fr/train/0.parquet"), "en, fr"),
        (("train.parquet", "small/train.parquet"), "., small"),
        (("part1/0.parquet", "part2/0.parquet"), "part1, part2"),
    ],
)
def test_several_configurations_are_refused_and_listed(
    tmp_path: Path, files: tuple[str, ...], names: str
) -> None:
    touch(tmp_path, *files)
    with pytest.raises(DataError, match=rf"several data sets \(on the Hub: .*\), in {names}: name"):
        splits(tmp_path)


def test_shards_with_hashes_of_their_own_are_one_split(tmp_path: Path) -> None:
    shards = [f"data/train-0000{n}-of-00002-{'abcdef01' * 2}{n}.parquet" for n in range(2)]
    touch(tmp_path, *shards)
    assert splits(tmp_path)[0] == {"train": shards}
    (tmp_path / shards[1]).unlink()
    with pytest.raises(DataError, match=r"are missing that .* count: train-00001-of-00002"):
        splits(tmp_path)


@pytest.mark.parametrize("configured", [True, False])
def test_the_configurations_of_a_card_are_not_read_and_that_is_said(
    tmp_path: Path, configured: bool
) -> None:
    touch(tmp_path, "train.parquet")
    front = "configs:\n- config_name: default\n" if configured else "license: mit\n"
    (tmp_path / "README.md").write_text(f"---\n{front}---\nconfigs: in the text\n")
    _, _, said = splits(tmp_path)
    line = (
        f"{tmp_path}/README.md has `configs:`, which is not read: the split of each file is taken "
        "from its name"
    )
    assert said == [line] * configured


def test_links_to_folders_are_followed_and_no_folder_is_read_twice(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/0.parquet", "set/test/0.parquet", "set/test/1.parquet")
    (tmp_path / "set" / "train").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "again").symlink_to(tmp_path / "set" / "test")
    (tmp_path / "elsewhere" / "up").symlink_to(tmp_path / "set")
    found, left_out, said = splits(tmp_path / "set")
    assert found == {"train": ["train/0.parquet"], "test": ["test/0.parquet", "test/1.parquet"]}
    assert (left_out, said) == ([], [])


@pytest.mark.parametrize(
    "names",
    [
        ("00000-of-00001-ab12", "00000-of-00002-cd34", "00001-of-00002-cd34"),
        ("00000-of-00001-ab12", "00000-of-00001-cd34"),
        ("00000-of-00001", "00000-of-00001-cd34"),
    ],
)
def test_shards_of_two_versions_are_not_read_as_one(tmp_path: Path, names: tuple[str, ...]) -> None:
    touch(tmp_path, *(f"train-{name}.parquet" for name in names))
    with pytest.raises(DataError, match="belong to different versions of the same rows by their"):
        splits(tmp_path)


def test_the_nearest_folder_that_names_a_split_counts(tmp_path: Path) -> None:
    touch(tmp_path, "train_data/train/0.parquet", "train_data/test/0.parquet")
    found, _, _ = splits(tmp_path)
    assert found == {"train": ["train_data/train/0.parquet"], "test": ["train_data/test/0.parquet"]}
