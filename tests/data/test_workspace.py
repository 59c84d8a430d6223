"""The work folder: planned once, found again, and never mixed up with another dataset's."""

import concurrent.futures
import contextlib
import errno
import json
import logging
import math
import shutil
import threading

import numpy as np
import pytest
from nnunet_golden import recorded
from small_datasets import change_json, image_and_label, write_decathlon, write_nifti, write_nnunet

from jaxmamba3d.data import workspace
from jaxmamba3d.data.case_files import centres_of, open_case
from jaxmamba3d.data.pipeline import training_batches
from jaxmamba3d.data.planning import plan_dataset
from jaxmamba3d.data.plans import load_plans, save_plans
from jaxmamba3d.data.workspace import open_workspace, plan_workspace
from jaxmamba3d.files import folder_lock


@pytest.fixture
def dataset(tmp_path):
    return write_decathlon(tmp_path / "data", cases=6)


def turn_case_3(dataset):
    """Stores it as LPS, where the others are RAS."""
    image, label = image_and_label(3)
    turned = np.diag([-1.0, -1.5, 2.0, 1.0])
    write_nifti(dataset / "imagesTr" / "case_3.nii.gz", image[..., 0], turned)
    write_nifti(dataset / "labelsTr" / "case_3.nii.gz", label, turned)


def test_planned_preprocessed_and_opened_again(dataset, tmp_path):
    made = plan_workspace(dataset, tmp_path / "work", processes=1)
    found = open_workspace(tmp_path / "work")
    assert found == made
    assert {path.name for path in (tmp_path / "work").iterdir()} == {
        "dataset_fingerprint.json",
        "nnUNetPlans.json",
        "source.json",
        "splits_final.json",
    }
    folder = found.preprocess(processes=1)
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert names == [f"case_{n}" for n in range(6)]
    case = open_case(folder / "case_0")
    assert case.image.shape == (*case.label.shape, 1)
    split = found.split(0)
    assert sorted(split["train"] + split["val"]) == names
    for fold in (-1, 5):
        with pytest.raises(ValueError, match=f"fold must be from 0 to 4, got {fold}"):
            found.split(fold)


def test_planning_again_keeps_what_is_there(dataset, tmp_path):
    plan_workspace(dataset, tmp_path / "work", processes=1)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").iterdir()}
    plan_workspace(dataset, tmp_path / "work", processes=1)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "work").iterdir()} == before


def test_given_plans_and_splits_are_taken(dataset, tmp_path):
    plans_file = recorded("hippo/nnUNetPlans.json")
    splits = [{"train": ["case_0"], "val": ["case_1"]}]
    splits_file = tmp_path / "splits.json"
    splits_file.write_text(json.dumps(splits))
    made = plan_workspace(
        dataset, tmp_path / "work", plans_file=plans_file, splits_file=splits_file, processes=1
    )
    assert made.plans == load_plans(plans_file)
    assert made.splits == splits
    with pytest.raises(ValueError, match="fold must be from 0 to 0, got 1"):
        made.split(1)
    with pytest.raises(ValueError, match=r"planned by .*, got other plans"):
        plan_workspace(dataset, tmp_path / "work", plans_file=recorded("ct/nnUNetPlans.json"), processes=1)


def test_given_plans_must_fit_the_dataset_and_its_cases_be_good(dataset, tmp_path):
    plans_file = recorded("mrmask/nnUNetPlans.json")
    with pytest.raises(ValueError, match=r"3d_fullres of .* must be for the dataset's 1 channels, got for 2"):
        plan_workspace(dataset, tmp_path / "work", plans_file=plans_file, processes=1)
    (dataset / "labelsTr" / "case_1.nii.gz").unlink()
    with pytest.raises(ValueError, match="1 of 6 cases"):
        plan_workspace(dataset, tmp_path / "work", plans_file=recorded("hippo/nnUNetPlans.json"), processes=1)
    assert not (tmp_path / "work").exists()


def test_the_orientations_of_a_run_are_those_of_its_folds_cases(dataset, tmp_path):
    turn_case_3(dataset)
    (dataset / "splits_final.json").write_text(json.dumps([{"train": ["case_0"], "val": ["case_1"]}]))
    assert plan_workspace(dataset, tmp_path / "work", processes=1).orientations == {"RAS": 2}


def test_the_datasets_own_splits(dataset, tmp_path):
    splits = [{"train": ["case_2", "case_3"], "val": ["case_1"]}]
    (dataset / "splits_final.json").write_text(json.dumps(splits))
    assert plan_workspace(dataset, tmp_path / "work", processes=1).splits == splits


def test_the_folder_of_another_dataset(dataset, tmp_path):
    plan_workspace(dataset, tmp_path / "work", processes=1)
    other = write_nnunet(tmp_path / "other")
    with pytest.raises(ValueError, match=r"must be planned for dataset .*other .*, got dataset .*data"):
        plan_workspace(other, tmp_path / "work", processes=1)


def test_other_wishes_than_the_folder_was_planned_with(dataset, tmp_path):
    workspace = plan_workspace(dataset, tmp_path / "work", processes=1)
    with pytest.raises(ValueError, match=r"planned for memory_gb 4.0 .*, got memory_gb 8.0"):
        plan_workspace(dataset, tmp_path / "work", memory_gb=4.0, processes=1)
    splits = [{"train": fold["val"], "val": fold["train"]} for fold in workspace.splits]
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    with pytest.raises(ValueError, match=r"must be split by .*splits\.json, got other splits"):
        plan_workspace(dataset, tmp_path / "work", splits_file=tmp_path / "splits.json", processes=1)


def test_a_spacing_of_ones_own(dataset, tmp_path):
    options = {"spacing": (3.0, 2.0, 2.5), "processes": 1}
    planned = plan_workspace(dataset, tmp_path / "planned", processes=1).plans.configurations["3d_fullres"]
    workspace = plan_workspace(dataset, tmp_path / "work", **options)
    found = workspace.plans.configurations["3d_fullres"]
    assert found.spacing == (3.0, 2.0, 2.5)
    assert found.patch_size == planned.patch_size
    lengths = [np.multiply(c.spacing, c.median_image_size) for c in (planned, found)]
    np.testing.assert_allclose(*lengths)
    assert plan_workspace(dataset, tmp_path / "work", **options) == workspace
    save_plans(plan_workspace(dataset, tmp_path / "planned", processes=1).plans, tmp_path / "plans.json")
    again = plan_workspace(dataset, tmp_path / "work", plans_file=tmp_path / "plans.json", **options)
    assert again.plans == workspace.plans
    with pytest.raises(ValueError, match=r"planned with spacing \(3\.0, 2\.0, 3\.0\), got another spacing"):
        plan_workspace(dataset, tmp_path / "work", spacing=(3.0, 2.0, 3.0), processes=1)


@pytest.mark.parametrize(
    "spacing", [(0.0, 1.0, 1.0), (1.0, 1.0, -1.0), (math.nan, 1.0, 1.0), (1e9, 1.0, 1.0)]
)
def test_impossible_spacings_are_refused_before_any_case_is_read(tmp_path, spacing):
    with pytest.raises(ValueError, match=r"spacing must be three sizes of voxels from 0\.001 to 100 mm, got"):
        plan_workspace(tmp_path / "nowhere", tmp_path / "work", spacing=spacing)
    with pytest.raises(ValueError, match="memory_gb must be greater than 0, got -3"):
        plan_workspace(tmp_path / "nowhere", tmp_path / "work", memory_gb=-3)


def test_no_work_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a work folder; make one with `jaxmamba3d plan`"):
        open_workspace(tmp_path)


def test_a_configuration_that_the_plans_lack(dataset, tmp_path):
    workspace = plan_workspace(dataset, tmp_path / "work", processes=1)
    with pytest.raises(ValueError, match="configuration must be one of 3d_fullres, got '2d'"):
        workspace.preprocess("2d", processes=1)


def test_a_bad_dataset_leaves_no_work_folder(dataset, tmp_path):
    (dataset / "labelsTr" / "case_1.nii.gz").unlink()
    with pytest.raises(ValueError, match="1 of 6 cases"):
        plan_workspace(dataset, tmp_path / "work", processes=1)
    assert not (tmp_path / "work").exists()


def test_test_cases_are_checked_but_not_planned_for(dataset, tmp_path, monkeypatch):
    (dataset / "splits_final.json").write_text(json.dumps([{"train": ["case_0"], "val": ["case_1"]}]))
    counts = []
    monkeypatch.setattr(
        workspace,
        "plan_dataset",
        lambda dataset, **options: counts.append(len(dataset.cases)) or plan_dataset(dataset, **options),
    )
    plan_workspace(dataset, tmp_path / "work", processes=1)
    assert counts == [2]
    fingerprint = json.loads((tmp_path / "work" / "dataset_fingerprint.json").read_text())
    assert len(fingerprint["spacings"]) == 2
    (dataset / "labelsTr" / "case_5.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"1 of 4 cases .* are bad; fix or remove them:\ncase_5: label"):
        plan_workspace(dataset, tmp_path / "other", processes=1)


def test_a_work_folder_of_before_cases_were_noted_down_warns_of_none(dataset, tmp_path, caplog):
    (dataset / "splits_final.json").write_text(json.dumps([{"train": ["case_0"], "val": ["case_1"]}]))
    plan_workspace(dataset, tmp_path / "work", processes=1)
    change_json(tmp_path / "work" / "source.json", cases=None)
    with caplog.at_level(logging.WARNING):
        open_workspace(tmp_path / "work")
    assert caplog.text == ""


def test_planning_warns_of_several_orientations(dataset, tmp_path, caplog):
    turn_case_3(dataset)
    with caplog.at_level(logging.WARNING):
        plan_workspace(dataset, tmp_path / "work", processes=1)
    assert "1 as LPS (such as case_3), 5 as RAS (such as case_0)" in caplog.text


def test_a_case_without_foreground_is_one(dataset, tmp_path):
    path = dataset / "labelsTr" / "case_2.nii.gz"
    _, label = image_and_label(2)
    write_nifti(path, np.zeros_like(label))
    workspace = plan_workspace(dataset, tmp_path / "work", processes=1)
    folder = workspace.preprocess(processes=1) / "case_2"
    assert [len(tables) for tables in centres_of(folder)] == [0, 0]
    assert (open_case(folder).label == 0).all()


@pytest.mark.parametrize("size", [0, 0.5])
@pytest.mark.parametrize(
    "name", ["image.npy", "label.npy", "foreground.npz", "properties.json", "made_from.json"]
)
def test_a_case_that_lost_data_is_preprocessed_again(dataset, tmp_path, name, size):
    workspace = plan_workspace(dataset, tmp_path / "work", processes=1)
    path = workspace.preprocess(processes=1) / "case_0" / name
    whole = path.read_bytes()
    path.write_bytes(whole[: int(size * len(whole))])
    workspace.preprocess(processes=1)
    assert path.read_bytes() == whole or name == "foreground.npz"  # a zip file holds its time
    assert path.stat().st_size == len(whole)


def test_cases_that_are_preprocessed_again_are_read_again(dataset, tmp_path):
    """By whoever begins to, in the same process too."""
    workspace = plan_workspace(dataset, tmp_path / "work", processes=1)

    def label():
        folder = workspace.preprocess(processes=1)
        batches = training_batches(folder, ["case_0"], patch_size=(12, 14, 10), batch_size=1)
        return next(batches)["label"]

    before = label()
    assert set(np.unique(before[before >= 0])) == {0, 1, 2}
    write_nifti(dataset / "labelsTr" / "case_0.nii.gz", np.ones((12, 14, 10), np.uint8))
    assert set(np.unique(label()[before >= 0])) == {1}


def test_another_description_than_was_planned(dataset, tmp_path):
    work = tmp_path / "work"
    plan_workspace(dataset, work, processes=1)
    change_json(dataset / "dataset.json", modality={"0": "mr"})  # normalised alike
    plan_workspace(dataset, work, processes=1)
    change_json(dataset / "dataset.json", modality={"0": "CT"})
    with pytest.raises(ValueError, match=r"planned for the channels CT \(plan into a new .*, got MRI$"):
        open_workspace(work)
    change_json(dataset / "dataset.json", modality={"0": "MRI"})
    names = [f"case_{n}" for n in range(6)]
    (dataset / "splits_final.json").write_text(json.dumps([{"train": names[1:], "val": names[:1]}]))
    with pytest.raises(ValueError, match=r"split by .*splits_final\.json as it is now.*got other splits"):
        plan_workspace(dataset, work, processes=1)
    plan_workspace(dataset, tmp_path / "new", processes=1)
    (dataset / "splits_final.json").unlink()
    assert len(open_workspace(tmp_path / "new").splits) == 1  # kept


def test_plans_and_splits_that_were_given_do_not_follow_the_dataset(dataset, tmp_path):
    made = plan_workspace(dataset, tmp_path / "work", processes=1)
    files = {"plans_file": made.folder / "nnUNetPlans.json", "splits_file": made.folder / "splits_final.json"}
    given = plan_workspace(dataset, tmp_path / "given", **files, processes=1)
    change_json(dataset / "dataset.json", modality={"0": "CT"})
    (dataset / "splits_final.json").write_text(json.dumps([{"train": ["case_1"], "val": ["case_0"]}]))
    assert open_workspace(given.folder).splits == made.splits


def test_a_dataset_without_foreground_is_refused(dataset, tmp_path):
    for number in range(6):
        _, label = image_and_label(number)
        write_nifti(dataset / "labelsTr" / f"case_{number}.nii.gz", np.zeros_like(label))
    with pytest.raises(ValueError, match=r"labels of .* must be above 0 in at least one case, got 0 alone"):
        plan_workspace(dataset, tmp_path / "work", processes=1)
    assert not (tmp_path / "work").exists()


@contextlib.contextmanager
def files_of_at_most(size):
    """As a full disk does, but with another errno: worker processes inherit the limit."""
    resource = pytest.importorskip("resource")  # Windows has none
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


@pytest.mark.parametrize("processes", [1, 2])
def test_no_room_for_a_case(dataset, tmp_path, processes):
    workspace = plan_workspace(dataset, tmp_path / "work", processes=1)
    message = r"case_\d could not be written: .*; make room and start again, what is whole is kept"
    with files_of_at_most(4000), pytest.raises(OSError, match=message):
        workspace.preprocess(processes=processes)
    folder = workspace.cases_folder("3d_fullres")
    assert [path.name for path in folder.iterdir()] == ["configuration.json"]
    workspace.preprocess(processes=1)
    assert len(list(folder.iterdir())) == 7


def test_no_room_for_a_new_version_of_a_case(dataset, tmp_path, monkeypatch):
    workspace = plan_workspace(dataset, tmp_path / "work", processes=1)
    folder = workspace.preprocess(processes=1)
    (dataset / "imagesTr" / "case_0.nii.gz").touch()

    def full_disk(path, array):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full_disk)
    with pytest.raises(OSError, match=r"case_0 could not be written: No space left on device; make room"):
        workspace.preprocess(processes=1)
    assert open_case(folder / "case_0").image.size
    assert not list(folder.glob(".*"))


class TestADatasetThatChanged:
    @pytest.fixture
    def work(self, dataset, tmp_path):
        plan_workspace(dataset, tmp_path / "work", processes=1).preprocess(processes=1)
        return tmp_path / "work"

    @staticmethod
    def list_cases(dataset, numbers):
        training = [{part: f"./{part}sTr/case_{n}.nii.gz" for part in ("image", "label")} for n in numbers]
        change_json(dataset / "dataset.json", training=training, numTraining=len(training))

    def test_nothing_changed(self, dataset, work, caplog):
        with caplog.at_level(logging.WARNING):
            plan_workspace(dataset, work, processes=1)
        assert not caplog.records

    def test_an_added_case_is_in_no_fold(self, dataset, work, caplog):
        image, label = image_and_label(6)
        write_nifti(dataset / "imagesTr" / "case_6.nii.gz", image[..., 0])
        write_nifti(dataset / "labelsTr" / "case_6.nii.gz", label)
        self.list_cases(dataset, range(7))
        with caplog.at_level(logging.WARNING):
            open_workspace(work)
        (record,) = caplog.records
        assert record.message.startswith("case_6 came to ")
        assert "in no fold" in record.message
        assert "add them to" in record.message
        assert "new work folder" in record.message

        # Whoever follows the advice hears no more of it.
        splits = json.loads((work / "splits_final.json").read_text())
        splits[0]["train"].append("case_6")
        (work / "splits_final.json").write_text(json.dumps(splits))
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            workspace = open_workspace(work)
        assert not caplog.records
        workspace.preprocess(processes=1)
        assert (workspace.cases_folder("3d_fullres") / "case_6" / "image.npy").is_file()

    def test_a_case_of_the_splits_is_gone(self, dataset, work):
        self.list_cases(dataset, range(5))
        with pytest.raises(
            ValueError, match=r"splits_final\.json must be of cases that .* got case_5, gone since"
        ):
            open_workspace(work)

    def test_a_changed_case_is_preprocessed_again(self, dataset, work, caplog):
        cases = work / "3d_fullres"
        before = {path.name: path.stat().st_ino for path in cases.iterdir()}
        image, _ = image_and_label(20)
        write_nifti(dataset / "imagesTr" / "case_2.nii.gz", image[..., 0])
        with caplog.at_level(logging.INFO):
            open_workspace(work).preprocess(processes=1)
        assert "files of case_2 in" in caplog.text
        assert "the plans are kept" in caplog.text
        assert "files of case_2 changed since they were preprocessed" in caplog.text
        after = {path.name: path.stat().st_ino for path in cases.iterdir()}
        assert after.keys() == before.keys()
        assert {name for name in after if after[name] != before[name]} == {"case_2"}
        caplog.clear()
        with caplog.at_level(logging.INFO):
            open_workspace(work).preprocess(processes=1)
        assert "6 of 6 cases are preprocessed already" in caplog.text

    def test_a_case_that_turned_bad_keeps_its_former_self(self, dataset, work):
        _, label = image_and_label(2)
        label[0, 0, 0] = 9
        write_nifti(dataset / "labelsTr" / "case_2.nii.gz", label)
        with pytest.raises(ValueError, match=r"1 of 6 cases are bad; .*:\ncase_2: label values \[9\] of .*"):
            open_workspace(work).preprocess(processes=1)
        assert (work / "3d_fullres" / "case_2" / "image.npy").is_file()

    def test_a_case_without_all_its_files_is_made_again(self, work, caplog):
        missing = work / "3d_fullres" / "case_1" / "label.npy"
        missing.unlink()
        with caplog.at_level(logging.INFO):
            open_workspace(work).preprocess(processes=1)
        assert "5 of 6 cases are preprocessed already" in caplog.text
        assert missing.is_file()

    def test_a_case_that_left_is_not_used(self, dataset, work, caplog):
        (work / "splits_final.json").write_text(json.dumps([{"train": ["case_0"], "val": ["case_1"]}]))
        self.list_cases(dataset, range(5))
        with caplog.at_level(logging.INFO):
            open_workspace(work).preprocess(processes=1)
        assert "case_2, case_3, case_4, case_5 are no cases of the folds" in caplog.text


def test_two_that_prepare_the_same_cases_take_turns(dataset, tmp_path, caplog):
    """The second one waits until the first has ended, and does what is left."""
    workspace = plan_workspace(dataset, tmp_path / "work", processes=1)
    folder = workspace.cases_folder("3d_fullres")
    second = threading.Thread(target=workspace.preprocess, kwargs={"processes": 1})
    with caplog.at_level(logging.INFO, "jaxmamba3d"):
        with folder_lock(folder, busy=lambda: None):
            second.start()
            second.join(timeout=1)
            assert second.is_alive()
            assert not list(folder.iterdir())
        second.join(timeout=60)
    assert f"waiting: another process prepares {folder}" in caplog.messages
    assert {path.name.split(".")[0] for path in folder.iterdir()} >= set(workspace.case_names)


def test_of_two_that_plan_the_same_folder_the_second_follows_the_first(dataset, tmp_path, caplog):
    """Or is refused, if it would plan otherwise."""
    first, work = tmp_path / "first", tmp_path / "work"
    plan_workspace(dataset, first, memory_gb=8, processes=1)
    with concurrent.futures.ThreadPoolExecutor() as pool, caplog.at_level(logging.INFO, "jaxmamba3d"):
        with folder_lock(work, busy=lambda: None):
            same, other = (
                pool.submit(plan_workspace, dataset, work, memory_gb=memory, processes=1) for memory in (8, 1)
            )
            while caplog.messages.count(f"waiting: another process plans {work}") < 2:
                assert not concurrent.futures.wait([same, other], timeout=0.1).done
            shutil.copytree(first, work, dirs_exist_ok=True)
        assert same.result().plans == load_plans(first / "nnUNetPlans.json")
        with pytest.raises(ValueError, match=r"planned for memory_gb 1 \(or .*\), got .* 8"):
            other.result()
