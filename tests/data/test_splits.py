"""Splits are nnU-Net's, and a file of splits is believed only where it fits the dataset."""

import json
import re

import pytest
from golden_data import GOLDEN

from jaxmamba3d.data.splits import cases_in_folds, load_splits, make_splits

RECORDED = GOLDEN / "nnunet" / "hippo" / "splits_final.json"


def recorded_names() -> list[str]:
    first = json.loads(RECORDED.read_text())[0]
    return first["train"] + first["val"]


def test_splits_are_the_recorded_ones_whatever_the_order():
    names = recorded_names()
    assert make_splits(names) == json.loads(RECORDED.read_text())
    assert make_splits(sorted(names, reverse=True)) == make_splits(set(names))


@pytest.mark.parametrize(("cases", "folds"), [(5, 5), (7, 3), (23, 5), (11, 10)])
def test_each_case_is_validated_once(cases, folds):
    names = [f"case_{n:02d}" for n in range(cases)]
    splits = make_splits(names, folds)
    assert sorted(name for split in splits for name in split["val"]) == names
    assert all(sorted(split["train"] + split["val"]) == names for split in splits)
    sizes = [len(split["val"]) for split in splits]
    # As scikit-learn's KFold: the first folds are larger by one.
    assert sizes == [cases // folds + (fold < cases % folds) for fold in range(folds)]


def test_fewer_cases_than_folds():
    with pytest.raises(ValueError, match=r"cases must be at least 5, one per fold .*, got 4"):
        make_splits(["a", "b", "c", "d"])


def test_a_file_of_splits_is_read_as_it_is():
    assert load_splits(RECORDED, recorded_names()) == json.loads(RECORDED.read_text())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            [{"train": ["a"], "val": ["b"]}, {"train": ["a", "x"], "val": ["b"]}],
            "fold 1 .* of cases that the dataset has, got x",
        ),
        ([{"train": ["a"], "val": ["y"]}], "fold 0 .* of cases that the dataset has, got y"),
        ([{"train": ["a", "b"], "val": ["b"]}], "fold 0 .* b in both"),
        ([{"train": ["a", "b"], "val": []}], "fold 0 must be with cases in train and val"),
        ([{"train": [], "val": ["b"]}], "fold 0 must be with cases in train and val"),
        ([{"train": ["a"]}], "list of .* ('val')"),
        ([["a", "b"]], "list of"),
        ([], "at least one fold, got none"),
        ({"train": ["a"], "val": ["b"]}, "list of splits, got a JSON dict"),
    ],
)
def test_files_that_do_not_fit(tmp_path, content, words):
    path = tmp_path / "splits_final.json"
    path.write_text(json.dumps(content))
    pattern = ".*".join(map(re.escape, [str(path), *words.split(" .* ")]))
    with pytest.raises(ValueError, match=pattern):
        load_splits(path, ["a", "b"])


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.json: no such file; it should hold a list of splits"):
        load_splits(tmp_path / "no.json", ["a"])
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match=r"bad\.json must hold a list of splits as JSON"):
        load_splits(tmp_path / "bad.json", ["a"])


def test_a_case_that_is_only_trained_on_is_in_a_fold():
    splits = [{"train": ["a", "b"], "val": ["c"]}, {"train": ["a"], "val": ["d"]}]
    assert cases_in_folds(splits) == {"a", "b", "c", "d"}
