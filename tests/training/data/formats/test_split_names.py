from __future__ import annotations

import pytest

from labelcurve.training.data.formats import split_names


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", ("train", "")),
        ("Training", ("train", "")),
        ("TRAIN_IMAGES", ("train", "")),
        ("trainSet", ("train", "")),
        ("training_set", ("train", "")),
        ("train_val", ("train", "")),
        ("trainval2017", ("train", "")),
        ("seg_train", ("train", "seg")),
        ("valid", ("validation", "")),
        ("val_data", ("validation", "")),
        ("Dev", ("validation", "")),
        ("validation", ("validation", "")),
        ("test-images", ("test", "")),
        ("testset", ("test", "")),
        ("Testing 2", ("test", "")),
        ("evaluation", ("test", "")),
        ("unlabeled", ("unlabelled", "")),
        ("holdout", None),
        ("images", None),
        ("trains", None),
        ("latest", None),
        ("invalid", None),
        ("train_test_split", None),
        ("猫", None),
    ],
)
def test_a_folder_is_a_split_by_its_words(name: str, split: tuple[str, str] | None) -> None:
    assert split_names.of_folder(name) == split


@pytest.mark.parametrize(
    ("value", "split"),
    [("Train", "train"), ("val", "validation"), ("test", "test"), ("seg_test", None), ("7", None)],
)
def test_a_cell_of_a_table_is_a_split_and_nothing_else(value: str, split: str | None) -> None:
    assert split_names.of_value(value) == split


@pytest.mark.parametrize(
    ("parts", "split"),
    [
        (("train-00000-of-00001.parquet",), ("train", 0)),
        (("data", "test-00000-of-00001.parquet"), ("test", 1)),
        (("default", "train", "0000.parquet"), ("train", 1)),
        (("my_eval_file.parquet",), ("test", 0)),
        (("valid1.parquet",), ("validation", 0)),
        (("train", "dev.parquet"), ("validation", 1)),  # the file's name counts first
        (("holdout-0.parquet",), None),
        (("testfile.parquet",), None),
        (("latest-results.parquet",), None),
    ],
)
def test_a_file_is_of_a_split_by_the_hubs_rules(
    parts: tuple[str, ...], split: tuple[str, int] | None
) -> None:
    assert split_names.on_hub(parts) == split


@pytest.mark.parametrize(
    ("folders", "family"),
    [
        ("train test cats", {"train": "train", "test": "test"}),
        ("train test train_aug", {"train": "train", "test": "test"}),
        ("a_train a_test b_train", {"a_train": "train", "a_test": "test"}),
        ("b_train a_test a_train", {"a_test": "test", "a_train": "train"}),
        ("a_test a_val b_train b_test", {"b_train": "train", "b_test": "test"}),
        (
            "a_train a_test b_train b_val b_test",
            {"b_train": "train", "b_val": "validation", "b_test": "test"},
        ),
        ("a_train a_test test val", {"a_train": "train", "a_test": "test", "val": "validation"}),
        ("a_test a_val", {"a_test": "test", "a_val": "validation"}),
        ("a_train a_unlabelled", {}),
        ("fruits_Train TEST", {"fruits_Train": "train", "TEST": "test"}),
        ("train_station test_tube", {}),
        ("test test_tube", {"test": "test"}),
        ("unlabelled cats", {}),
    ],
)
def test_the_splits_of_one_data_set_share_what_else_is_in_their_names(
    folders: str, family: dict[str, str]
) -> None:
    assert split_names.family(folders.split()) == family
