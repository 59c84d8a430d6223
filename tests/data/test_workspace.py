"""The work folder: planned once, found again, and never mixed up with another dataset's."""

import json

import pytest
from nnunet_golden import recorded
from small_datasets import write_decathlon, write_nnunet

from jaxmamba3d.data.case_files import open_case
from jaxmamba3d.data.plans import load_plans
from jaxmamba3d.data.workspace import open_workspace, plan_workspace


@pytest.fixture
def dataset(tmp_path):
    return write_decathlon(tmp_path / "data", cases=6)


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
