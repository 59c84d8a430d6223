"""Which values the labels of cases hold."""

import json
import os

import numpy as np
import pytest
from small_datasets import image_and_label, write_decathlon, write_nifti

from jaxmamba3d.data import Case, label_values, read_dataset, read_label_values


@pytest.fixture
def cases(tmp_path):
    folder = write_decathlon(tmp_path / "data", cases=3)
    write_nifti(folder / "labelsTr" / "case_1.nii.gz", np.zeros((12, 14, 10), np.uint8))
    return read_dataset(folder).cases


def test_they_are_read_once_and_again_where_files_have_changed(cases, tmp_path, monkeypatch):
    found = read_label_values(cases, tmp_path)
    assert found == {"case_0": [0, 1, 2], "case_1": [0], "case_2": [0, 1, 2]}
    read = []
    original = label_values.read_label
    monkeypatch.setattr(label_values, "read_label", lambda path: read.append(path) or original(path))
    assert read_label_values(cases, tmp_path) == found
    assert read == []
    label = image_and_label(5)[1] // 2
    write_nifti(cases[2].label, label)
    os.utime(cases[2].label, (1, 1))
    assert read_label_values(cases[1:], tmp_path) == {"case_1": [0], "case_2": [0, 1]}
    assert read == [cases[2].label]
    assert set(json.loads((tmp_path / "label_values.json").read_text())) == set(found)


def test_what_cannot_be_read_is_not_known(cases, tmp_path):
    cases[0].label.write_bytes(b"no label")
    cases[2].label.unlink()
    found = read_label_values([cases[0], cases[2], Case("unlabelled", cases[1].images)], tmp_path)
    assert found == {"case_0": None, "case_2": None, "unlabelled": None}


def test_a_folder_that_may_not_be_written_is_left_alone(cases, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert read_label_values(cases, tmp_path)["case_1"] == [0]
    assert not (tmp_path / "label_values.json").exists()
