"""Both layouts are read alike, and what is wrong with a folder is said before a file is opened."""

import json
import logging
import re
import shutil

import pytest
from small_datasets import change_json, write_decathlon, write_nnunet

from jaxmamba3d.data.cases import Case
from jaxmamba3d.data.dataset import find_images, read_dataset
from jaxmamba3d.labels import Labels

LABELS = {"background": (0,), "left": (1,), "right": (2,)}


@pytest.mark.parametrize("channels", [1, 2])
def test_the_two_layouts_hold_the_same(tmp_path, channels):
    decathlon = read_dataset(write_decathlon(tmp_path / "Task", channels=channels))
    raw = read_dataset(write_nnunet(tmp_path / "Dataset001_Small", channels=channels))
    for dataset in (decathlon, raw):
        assert dataset.labels == Labels(LABELS)
        assert dataset.channel_names == ("MRI",) * channels
        assert [case.name for case in dataset.cases] == [f"case_{n}" for n in range(5)]
        assert all(path.is_file() for case in dataset.cases for path in (*case.images, case.label))
    assert [len(case.images) for case in decathlon.cases] == [1] * 5
    assert [len(case.images) for case in raw.cases] == [channels] * 5
    assert raw.name == "Dataset001_Small"
    assert raw.folder.is_absolute()


def test_a_channel_that_is_not_there_is_listed_for_the_check(tmp_path):
    folder = write_nnunet(tmp_path / "data", channels=2)
    (folder / "imagesTr" / "case_3_0001.nii.gz").unlink()
    case = read_dataset(folder).cases[3]
    assert [path.name for path in case.images] == ["case_3_0000.nii.gz", "case_3_0001.nii.gz"]


def test_a_channel_too_many_is_listed_for_the_check(tmp_path):
    folder = write_nnunet(tmp_path / "data")
    shutil.copy(folder / "imagesTr" / "case_2_0000.nii.gz", folder / "imagesTr" / "case_2_0001.nii.gz")
    case = read_dataset(folder).cases[2]
    assert [path.name for path in case.images] == ["case_2_0000.nii.gz", "case_2_0001.nii.gz"]


@pytest.mark.parametrize("announced", [4, 7])
def test_another_number_of_cases_than_announced_is_a_warning(tmp_path, caplog, announced):
    folder = write_decathlon(tmp_path / "data")
    change_json(folder / "dataset.json", numTraining=announced)
    with caplog.at_level(logging.WARNING):
        assert len(read_dataset(folder).cases) == 5
    assert f"numTraining {announced}, but there are 5 cases" in caplog.text


def test_channels_are_in_the_order_of_their_numbers(tmp_path):
    folder = write_nnunet(tmp_path / "data", channels=2)
    change_json(folder / "dataset.json", channel_names={"1": "CT", "0": "T1"})
    assert read_dataset(folder).channel_names == ("T1", "CT")


def test_nnunets_channel_names_go_before_the_decathlons(tmp_path):
    folder = write_nnunet(tmp_path / "data")
    change_json(folder / "dataset.json", modality={"0": "CT"})
    assert read_dataset(folder).channel_names == ("MRI",)


def test_cases_are_sorted_by_name_whatever_the_list_s_order(tmp_path):
    folder = write_decathlon(tmp_path / "data")
    expected = read_dataset(folder)
    entries = json.loads((folder / "dataset.json").read_text())["training"]
    change_json(folder / "dataset.json", training=entries[::-1])
    assert read_dataset(folder) == expected


def test_folders_and_files_that_are_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such dataset folder"):
        read_dataset(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"dataset\.json: missing; a dataset of the Decathlon"):
        read_dataset(tmp_path)
    folder = write_nnunet(tmp_path / "data")
    shutil.rmtree(folder / "imagesTr")
    with pytest.raises(FileNotFoundError, match="imagesTr: no such folder of images"):
        read_dataset(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, "dataset.json: labels must be a table of names and values, got None"),
        ({"labels": {"background": 0, "left": 2}}, "labels must be 0, 1, 2, ... without gaps, got [0, 2]"),
        (
            {"labels": {"background": 0, "whole": [1, 2]}},
            "regions_class_order must be one value for each of the 1 regions",
        ),
        ({"channel_names": None}, "channel_names (or modality) must be channel names by number"),
        ({"channel_names": {"0": "CT", "2": "CT"}}, "must be channel names by number"),
        ({"file_ending": ".mha"}, "file_ending must be one of ('.nii.gz', '.nii'), got '.mha'"),
        (
            {"overwrite_image_reader_writer": "NibabelIOWithReorient"},
            "overwrite_image_reader_writer of",
        ),
        ({"training": []}, "a folder with training cases, got none"),
        ({"training": ["a.nii.gz"]}, 'training must be a list of {"image": file, "label": file}'),
    ],
)
def test_descriptions_that_cannot_be_used(tmp_path, changes, message):
    folder = write_nnunet(tmp_path / "data")
    change_json(folder / "dataset.json", **changes)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_dataset(folder)


@pytest.mark.parametrize("reader", [None, "None", "SimpleITKIO"])
def test_readers_that_change_nothing(tmp_path, reader):
    folder = write_nnunet(tmp_path / "data")
    expected = read_dataset(folder)
    change_json(folder / "dataset.json", overwrite_image_reader_writer=reader)
    assert read_dataset(folder) == expected


@pytest.mark.parametrize("text", ["{", "[]", '"text"'])
def test_a_description_that_is_no_json_object(tmp_path, text):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(ValueError, match=r"dataset\.json must (be|hold) "):
        read_dataset(tmp_path)


def test_a_byte_order_mark_is_no_part_of_a_description(tmp_path):
    path = write_decathlon(tmp_path / "data") / "dataset.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read_dataset(path.parent).cases) == 5


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [(b'"right"}', b'"right",}', r"line 1 column \d+"), (b"MRI", b"MR\xff", r"byte 0xff in position \d+")],
)
def test_where_a_description_is_no_json(tmp_path, old, new, place):
    path = write_decathlon(tmp_path / "data") / "dataset.json"
    path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(ValueError, match=rf"dataset\.json must hold a .* as JSON, got .*{place}"):
        read_dataset(path.parent)


def test_a_case_listed_twice(tmp_path):
    folder = write_decathlon(tmp_path / "data")
    entry = {"image": "./imagesTr/case_1.nii.gz", "label": "./labelsTr/case_1.nii.gz"}
    change_json(folder / "dataset.json", training=[entry, entry])
    with pytest.raises(ValueError, match=r"one entry per case, got several for \['case_1'\]"):
        read_dataset(folder)


@pytest.mark.parametrize("name", ["stray.nii.gz", "case_7.nii.gz", "_0000.nii.gz"])
def test_files_without_a_channel_number(tmp_path, name):
    folder = write_nnunet(tmp_path / "data")
    (folder / "imagesTr" / "case_0_0000.nii.gz").rename(folder / "imagesTr" / name)
    with pytest.raises(ValueError, match=rf"must be CASE_0000, CASE_0001, \.\.\., got {re.escape(name)}"):
        read_dataset(folder)


def test_raw_data_of_the_first_nnunet(tmp_path):
    """Its list names cases, its files channels."""
    folder = write_nnunet(tmp_path / "data", channels=2)
    entries = [
        {"image": f"./imagesTr/case_{n}.nii.gz", "label": f"./labelsTr/case_{n}.nii.gz"} for n in (0, 1)
    ]
    change_json(folder / "dataset.json", training=entries, numTraining=2)
    files = [[path.name for path in case.images] for case in read_dataset(folder).cases]
    assert files == [[f"case_{n}_0000.nii.gz", f"case_{n}_0001.nii.gz"] for n in (0, 1)]

    (folder / "imagesTr" / "case_1_0001.nii.gz").unlink()  # for the check of files to find
    (folder / "imagesTr" / "case_0_0000.nii.gz").rename(folder / "imagesTr" / "case_0.nii.gz")
    files = [[path.name for path in case.images] for case in read_dataset(folder).cases]
    assert files == [["case_0.nii.gz"], ["case_1_0000.nii.gz", "case_1_0001.nii.gz"]]
    shutil.copy(folder / "imagesTr" / "case_0.nii.gz", folder / "imagesTr" / "case_0_0000.nii.gz")
    assert read_dataset(folder).cases[0].images == (folder / "imagesTr" / "case_0.nii.gz",)


def test_files_listed_by_case(tmp_path):
    folder = write_nnunet(tmp_path / "data", channels=2)
    images = [f"imagesTr/case_3_{channel:04d}.nii.gz" for channel in range(2)]
    table = {"any name": {"images": images, "label": "labelsTr/case_3.nii.gz"}}
    change_json(folder / "dataset.json", dataset=table, numTraining=1)
    (case,) = read_dataset(folder).cases
    assert case == Case(
        "any name", tuple(folder / image for image in images), folder / table["any name"]["label"]
    )


def test_listed_files_may_name_environment_variables(tmp_path, monkeypatch):
    folder = write_nnunet(tmp_path / "Dataset001_Small")
    monkeypatch.setenv("SMALL", str(folder))
    entry = {"images": ["$SMALL/imagesTr/case_0_0000.nii.gz"], "label": "${SMALL}/labelsTr/case_0.nii.gz"}
    change_json(folder / "dataset.json", dataset={"a": entry}, numTraining=1)
    (case,) = read_dataset(folder).cases
    assert case.images == (folder / "imagesTr" / "case_0_0000.nii.gz",)
    assert case.label == folder / "labelsTr" / "case_0.nii.gz"


@pytest.mark.parametrize(
    "entry",
    [
        {"images": ["a.nii.gz"]},
        {"images": "a.nii.gz", "label": "b.nii.gz"},
        {"images": [], "label": "b.nii.gz"},
        {"images": [1], "label": "b.nii.gz"},
        {"images": ["a.nii.gz"], "label": None},
        ["a.nii.gz"],
    ],
)
def test_entries_that_list_no_files(tmp_path, entry):
    folder = write_nnunet(tmp_path / "data")
    change_json(folder / "dataset.json", dataset={"a": entry})
    with pytest.raises(ValueError, match=r'dataset must be a table of case: {"images"'):
        read_dataset(folder)


@pytest.mark.parametrize("name", ["../other", "site/case", "site\\case", ".hidden", "..", ""])
def test_names_of_cases_that_cannot_be_names_of_files(tmp_path, name):
    """Or the case's folder would lie, and replace another one, anywhere."""
    folder = write_nnunet(tmp_path / "data")
    change_json(folder / "dataset.json", dataset={name: {"images": ["a.nii.gz"], "label": "b.nii.gz"}})
    with pytest.raises(ValueError, match=r"dataset must be of cases named as files can be"):
        read_dataset(folder)


class TestImagesAlone:
    def test_numbers_that_are_no_channels(self, tmp_path):
        for name in ("amos_0001.nii.gz", "amos_0004.nii", "other.NII.GZ"):
            (tmp_path / name).touch()
        names = [case.name for case in find_images(tmp_path, 1)]
        assert names == ["amos_0001", "amos_0004", "other"]

    def test_a_single_file(self, tmp_path):
        path = tmp_path / "a.nii.gz"
        path.touch()
        with pytest.raises(FileNotFoundError, match=r"a\.nii\.gz: a file; name the folder that holds it"):
            find_images(path, 1)

    def test_two_files_of_a_name(self, tmp_path):
        for name in ("a.nii", "a.nii.gz"):
            (tmp_path / name).touch()
        with pytest.raises(ValueError, match=r"one of each name, got a\.nii and a\.nii\.gz"):
            find_images(tmp_path, 1)

    def test_channels_are_joined(self, tmp_path):
        folder = write_nnunet(tmp_path / "data", cases=2, channels=2) / "imagesTr"
        found = find_images(folder, 2)
        assert [case.name for case in found] == ["case_0", "case_1"]
        assert [path.name for path in found[1].images] == ["case_1_0000.nii.gz", "case_1_0001.nii.gz"]

    def test_plain_files_are_a_case_each(self, tmp_path):
        folder = write_decathlon(tmp_path / "data", cases=2, channels=2) / "imagesTr"
        assert find_images(folder, 2) == tuple(
            Case(f"case_{n}", (folder / f"case_{n}.nii.gz",)) for n in range(2)
        )

    def test_wrong_channels_are_all_named(self, tmp_path):
        folder = write_nnunet(tmp_path / "data", cases=3, channels=2) / "imagesTr"
        (folder / "case_0_0001.nii.gz").unlink()
        (folder / "case_2_0000.nii.gz").unlink()
        with pytest.raises(ValueError, match=r"case_0 has 0000, case_2 has 0001"):
            find_images(folder, 2)

    def test_channels_that_the_net_does_not_take_are_too_many(self, tmp_path):
        folder = write_nnunet(tmp_path / "data", cases=1, channels=3) / "imagesTr"
        with pytest.raises(ValueError, match=r"of channels 0000, 0001 .*, got case_0 has 0000, 0001, 0002"):
            find_images(folder, 2)

    def test_nothing_to_predict(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no \.nii\.gz or \.nii files here"):
            find_images(tmp_path, 1)
        with pytest.raises(FileNotFoundError, match="nowhere: no such folder of images"):
            find_images(tmp_path / "nowhere", 1)

    def test_files_of_other_formats_are_said(self, tmp_path, caplog):
        for name in ("a.nii.gz", "._a.nii.gz", "b.mha", ".hidden"):
            (tmp_path / name).touch()
        assert [case.name for case in find_images(tmp_path, 1)] == ["a"]
        assert caplog.text.rstrip().endswith(f"left out of {tmp_path}, not being NIfTI: b.mha")

    def test_half_numbered_files(self, tmp_path):
        folder = write_nnunet(tmp_path / "data", cases=2) / "imagesTr"
        (folder / "case_0_0000.nii.gz").rename(folder / "other.nii.gz")
        with pytest.raises(ValueError, match="all numbered by channel, or none, got 1 that are not"):
            find_images(folder, 1)
