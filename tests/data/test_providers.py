"""BTCV and ACDC as they are shipped: each case's files, and what is said of half of a download."""

import json
import logging
import re
import shutil

import numpy as np
import pytest
from real_data import AUTHORS
from small_datasets import write_acdc, write_btcv, write_nifti

from jaxmamba3d.data.dataset import is_dataset, read_dataset, read_labels
from jaxmamba3d.data.inspection import check_dataset
from jaxmamba3d.data.workspace import open_workspace, plan_workspace

PATIENTS = {
    "training/patient001": (1, 12),
    "training/patient002": (4, 11),
    "training/patient090": (11, 4),
    "testing/patient101": (1, 14),
}


@pytest.fixture
def btcv(tmp_path):
    return write_btcv(tmp_path / "Abdomen" / "RawData")


@pytest.fixture
def acdc(tmp_path):
    return write_acdc(tmp_path / "ACDC", PATIENTS)


class TestBtcv:
    @pytest.mark.parametrize("part", ["Training", ".", "..", "../.."])
    def test_read_from_any_folder_that_was_unpacked(self, btcv, part):
        assert is_dataset(btcv / part)
        dataset = read_dataset(btcv / part)
        assert [case.name for case in dataset.cases] == ["abdomen_001", "abdomen_002", "abdomen_021"]
        (image,), label = dataset.cases[2].images, dataset.cases[2].label
        training = btcv / "Training"
        assert (image, label) == (training / "img/img0021.nii.gz", training / "label/label0021.nii.gz")
        assert dataset.channel_names == ("CT",)
        assert dataset.labels == read_labels(AUTHORS / "Dataset090_SynapseAbdomen" / "dataset.json")
        check_dataset(dataset, processes=1)

    def test_an_image_without_label_and_a_label_without_image(self, btcv):
        (btcv / "Training" / "label" / "label0002.nii.gz").unlink()
        (btcv / "Training" / "img" / "img0021.nii.gz").unlink()
        with pytest.raises(ValueError, match=r"2 of 3 cases .* are bad; fix or remove them") as caught:
            check_dataset(read_dataset(btcv), processes=1)
        assert re.search(r"abdomen_002: label \S+label0002\.nii\.gz: no such file", str(caught.value))
        assert re.search(r"abdomen_021: \S+img0021\.nii\.gz: no such file", str(caught.value))

    def test_half_of_a_download(self, btcv, caplog):
        with caplog.at_level(logging.WARNING):
            read_dataset(btcv)
        assert "Training has 3 cases, but is shipped with 30" in caplog.text
        with pytest.raises(FileNotFoundError, match=r"Testing/label: no such folder; BTCV's Training"):
            read_dataset(btcv / "Testing")
        for path in (btcv / "Training" / "label").iterdir():
            path.unlink()
        with pytest.raises(FileNotFoundError, match=r"label: no \.nii\.gz or \.nii files here"):
            read_dataset(btcv)

    def test_files_of_other_names(self, btcv):
        (btcv / "Training" / "img" / "img0001.nii.gz").rename(btcv / "Training" / "img" / "first.nii.gz")
        with pytest.raises(ValueError, match=r"must be img0001\.nii\.gz, .*, got \['first\.nii\.gz'\]"):
            read_dataset(btcv)

    def test_images_alone_are_no_dataset(self, btcv):
        assert not is_dataset(btcv / "Testing" / "img")


class TestAcdc:
    @pytest.mark.parametrize("part", ["training", "."])
    def test_both_frames_of_each_training_patient(self, acdc, part):
        assert is_dataset(acdc / part)
        dataset = read_dataset(acdc / part)
        assert [case.name for case in dataset.cases] == [
            "patient001_frame01",
            "patient001_frame12",
            "patient002_frame04",
            "patient002_frame11",
            "patient090_frame04",
            "patient090_frame11",
        ]
        patient = acdc / "training" / "patient001"
        assert dataset.cases[1].images == (patient / "patient001_frame12.nii.gz",)
        assert dataset.cases[1].label == patient / "patient001_frame12_gt.nii.gz"
        assert dataset.labels == read_labels(AUTHORS / "Dataset027_ACDC" / "dataset.json")
        check_dataset(dataset, processes=1)

    def test_the_challenges_test_patients_are_a_dataset_of_their_own(self, acdc):
        names = [case.name for case in read_dataset(acdc / "testing").cases]
        assert names == ["patient101_frame01", "patient101_frame14"]

    def test_frames_that_are_not_there(self, acdc):
        (acdc / "training" / "patient001" / "patient001_frame12_gt.nii.gz").unlink()
        (acdc / "training" / "patient002" / "patient002_frame04.nii.gz").unlink()
        with pytest.raises(ValueError, match=r"2 of 6 cases .* are bad; fix or remove them") as caught:
            check_dataset(read_dataset(acdc), processes=1)
        assert re.search(r"label \S+patient001_frame12_gt\.nii\.gz: no such file", str(caught.value))
        assert re.search(r"patient002_frame04: \S+patient002_frame04\.nii\.gz: no such", str(caught.value))

    def test_patients_whose_frames_cannot_be_told(self, acdc):
        (acdc / "training" / "patient001" / "Info.cfg").unlink()
        (acdc / "training" / "patient002" / "Info.cfg").write_text("ED: 1\nGroup: DCM\n")
        (acdc / "training" / "patient090" / "Info.cfg").write_text("ED: 4\nES: 4\n")
        with pytest.raises(ValueError, match=r"3 of 3 patients .* are bad; copy them again") as caught:
            read_dataset(acdc)
        assert re.search(
            r"patient001/Info\.cfg: missing; it says which frames are ED and ES", str(caught.value)
        )
        assert re.search(r'patient002/Info\.cfg must be .* "ED: " and "ES: ", got', str(caught.value))

    def test_half_of_a_download(self, acdc, caplog):
        with caplog.at_level(logging.WARNING):
            read_dataset(acdc)
        assert "training has 3 patients, but is shipped with 100" in caplog.text
        shutil.rmtree(acdc / "training")
        with pytest.raises(FileNotFoundError, match=r"dataset\.json: missing; .* ACDC training/patient001/"):
            read_dataset(acdc)

    def test_the_training_patients_are_folders_whose_files_may_be_of_any_encoding(self, acdc):
        (acdc / "training" / "patient003").touch()
        info = acdc / "training" / "patient001" / "Info.cfg"
        info.write_bytes("Group: Hôpital\n".encode("latin-1") + info.read_bytes())
        assert len(read_dataset(acdc).cases) == 6

    def test_a_whole_testing_folder_is_no_half_of_a_download(self, tmp_path, caplog):
        patients = {f"testing/patient{number}": (1, 2) for number in range(101, 151)}
        write_acdc(tmp_path, patients, shape=(4, 4, 4))
        with caplog.at_level(logging.WARNING):
            assert len(read_dataset(tmp_path / "testing").cases) == 100
        assert caplog.text == ""

    def test_cases_in_no_fold_are_not_trained_on(self, acdc, tmp_path, caplog):
        splits = [{"train": ["patient001_frame01", "patient001_frame12"], "val": ["patient090_frame04"]}]
        (tmp_path / "splits.json").write_text(json.dumps(splits))
        work = tmp_path / "work"
        with caplog.at_level(logging.INFO):
            planned = plan_workspace(acdc, work, splits_file=tmp_path / "splits.json", processes=1)
        assert "3 cases in 1 folds" in caplog.text
        assert "3 cases are in no fold: test cases, which are not trained on" in caplog.text
        assert open_workspace(work) == planned
        assert planned.plans.dataset_name == "ACDC"
        assert len(json.loads((work / "dataset_fingerprint.json").read_text())["spacings"]) == 3
        cases = planned.preprocess(processes=1)
        names = sorted(path.name for path in cases.iterdir() if path.is_dir())
        assert names == ["patient001_frame01", "patient001_frame12", "patient090_frame04"]


def test_a_described_dataset_goes_before_what_is_shipped(btcv):
    (btcv / "dataset.json").write_text("{}")
    with pytest.raises(ValueError, match=r"dataset\.json: channel_names"):
        read_dataset(btcv)


def test_a_folder_of_images_is_no_dataset(tmp_path):
    write_nifti(tmp_path / "a.nii.gz", np.zeros((3, 3, 3), np.float32))
    (tmp_path / "dataset.json").write_text("{}")
    assert not is_dataset(tmp_path)
    assert not is_dataset(tmp_path / "nowhere")
