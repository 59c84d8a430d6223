"""What would go wrong late is said before cases are preprocessed, or before the first step."""

import dataclasses
import logging
import shutil

import numpy as np
import pytest
from small_datasets import SHAPE, write_nifti, write_nnunet
from small_runs import small_config

from jaxmamba3d import experiment
from jaxmamba3d.checks import UnsupportedError
from jaxmamba3d.data import workspace
from jaxmamba3d.experiment.early_checks import check_classes
from jaxmamba3d.labels import Labels
from jaxmamba3d.run import open_run

LABELS = Labels({"background": (0,), "liver": (1,), "tumour": (2,)})
REGIONS = Labels({"background": (0,), "whole": (1, 2), "core": (2,)}, (1, 2))
SPLIT = {"train": ["a", "b"], "val": ["c"]}


def warnings_of(caplog, labels, values, split=SPLIT):
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        check_classes(labels, 3, split, values)
    return [record.getMessage() for record in caplog.records]


def test_absent_classes_are_warned_of_by_name_and_fold(caplog):
    assert warnings_of(caplog, LABELS, {"a": [0, 1], "b": [2], "c": [0, 1, 2]}) == []
    assert warnings_of(caplog, LABELS, {"a": [0, 1], "b": [0], "c": [0, 2]}) == [
        "fold 3: none of its 2 training cases has tumour; the net cannot learn it",
        "fold 3: none of its 1 validation cases has liver; of it, only false voxels can be scored",
    ]
    assert warnings_of(caplog, LABELS, {"a": [0, 1, 2], "b": [0], "c": [0]}) == [
        f"fold 3: none of its 1 validation cases has {name}; of it, only false voxels can be scored"
        for name in ("liver", "tumour")
    ]


@pytest.mark.parametrize(
    ("batch_size", "fraction", "warns"), [(1, 0.33, True), (1, 0.6, False), (2, 0.33, False), (1, 0, False)]
)
def test_batches_that_need_hold_no_foreground_are_warned_of(tmp_path, caplog, batch_size, fraction, warns):
    config = small_config(write_nnunet(tmp_path / "data", cases=5), tmp_path / "run")
    data = dataclasses.replace(config.data, batch_size=batch_size, foreground_fraction=fraction)
    with caplog.at_level(logging.WARNING):
        experiment.prepare(dataclasses.replace(config, data=data))
    sentence = f"data.foreground_fraction {fraction} of data.batch_size 1 rounds to no patch"
    assert (sentence in caplog.text) == warns


def test_regions_are_there_where_one_of_their_values_is(caplog):
    assert warnings_of(caplog, REGIONS, {"a": [0, 2], "b": [0], "c": [0, 1]}) == [
        "fold 3: none of its 1 validation cases has core; of it, only false voxels can be scored"
    ]


def test_what_is_not_known_is_not_warned_of(caplog):
    assert warnings_of(caplog, LABELS, {"a": [0], "b": None, "c": None}) == []


def test_training_cases_without_foreground_are_an_error():
    message = (
        "some of the 2 training cases of fold 3 must be labelled with at least one of liver, tumour, got none"
    )
    with pytest.raises(ValueError) as found:
        check_classes(LABELS, 3, SPLIT, {"a": [0], "b": [0], "c": [0, 1, 2]})
    assert str(found.value) == message
    ignored = Labels({"background": (0,), "liver": (1,), "ignore": (2,)})
    with pytest.raises(ValueError, match="at least one of liver, got none"):
        check_classes(ignored, 3, SPLIT, {"a": [0, 2], "b": [0, 2], "c": [1]})


@pytest.fixture
def planned(finished, tmp_path):
    """A work folder without any preprocessed case."""
    work = finished[0].folder / "work"
    shutil.copytree(work, tmp_path / "work", ignore=shutil.ignore_patterns("3d_fullres"))
    return str(tmp_path / "work")


def config_of(dataset, tmp_path, *, train=None, **data):
    config = small_config(dataset, tmp_path / "run", **(train or {}))
    return dataclasses.replace(config, data=dataclasses.replace(config.data, processes=1, **data))


@pytest.mark.parametrize(
    ("train", "data", "message"),
    [
        ({}, {"fold": 5}, r"^data\.fold must be from 0 to 4, got 5$"),
        ({}, {"configuration": "2d"}, r"configuration must be one of .*3d_fullres.*, got '?2d"),
        ({}, {"patch_size": (8, 9, 8)}, r"^data\.patch_size must be divisible by the net's 2 along axis 1"),
        ({"accumulate": 3}, {}, r"^train\.accumulate must be a divisor of the batch size 2, got 3$"),
        (
            {"shard_parameters": 7},
            {},
            r"^train\.shard_parameters must be a number of the 8 devices, of which",
        ),
    ],
)
def test_settings_that_do_not_fit_are_said_before_preprocessing(
    dataset, planned, tmp_path, train, data, message
):
    config = config_of(dataset, tmp_path, train=train, work=planned, **data)
    with pytest.raises(ValueError, match=message):
        experiment.run_experiment(config)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "work" / "3d_fullres").exists()


@pytest.mark.parametrize("data", [{"fold": 5}, {"configuration": "2d"}])
def test_folds_and_configurations_that_will_not_be_are_said_before_cases_are_read(
    dataset, tmp_path, monkeypatch, data
):
    def read(*_, **__):
        raise AssertionError("cases are read")

    monkeypatch.setattr(workspace, "compute_fingerprint", read)
    with pytest.raises(ValueError, match=f"{next(iter(data))} must be"):
        experiment.run_experiment(config_of(dataset, tmp_path, **data))


def test_scans_that_cannot_run_are_said_before_preprocessing(dataset, planned, tmp_path):
    config = config_of(dataset, tmp_path, work=planned)
    net = dataclasses.replace(config.net, name="segmamba", scan_implementation="pallas_mosaic_gpu")
    with pytest.raises(UnsupportedError, match="pallas_mosaic_gpu cannot run this call"):
        experiment.run_experiment(dataclasses.replace(config, net=net))
    assert not (tmp_path / "work" / "3d_fullres").exists()


def test_a_fold_s_folder_that_cannot_be_written_is_named(dataset, planned, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "fold_3").touch()
    message = r"^output must be a folder that can be written, got .*fold_3, which is no folder$"
    with pytest.raises(ValueError, match=message):
        experiment.run_experiment(config_of(dataset, tmp_path, fold="all", work=planned))
    assert not (tmp_path / "work" / "3d_fullres").exists()


def test_only_the_folds_asked_for_need_foreground(tmp_path, caplog):
    """One case alone is labelled, and with one class: the fold that validates it cannot be trained."""
    folder = write_nnunet(tmp_path / "data")
    for number in range(5):
        label = np.zeros(SHAPE, np.uint8)
        label[2:5, 2:5, 2:5] = number == 2
        write_nifti(folder / "labelsTr" / f"case_{number}.nii.gz", label)
    workspace = experiment.prepare(config_of(folder, tmp_path, fold=0))
    validates = [split["val"] for split in workspace.splits]
    fold = validates.index(["case_2"])
    assert fold != 0
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said == [
        "fold 0: none of its 4 training cases has right; the net cannot learn it",
        "fold 0: none of its 1 validation cases has left; of it, only false voxels can be scored",
        "fold 0: none of its 1 validation cases has right; of it, only false voxels can be scored",
    ]
    for chosen in (fold, "all"):
        with pytest.raises(ValueError, match=rf"^some of the 4 training cases of fold {fold} must be "):
            experiment.prepare(config_of(folder, tmp_path, fold=chosen))


def test_a_step_too_large_for_the_device_is_said_before_it_is_taken(finished, tmp_path, monkeypatch):
    run, _ = finished
    config = dataclasses.replace(run.config, output=str(tmp_path / "run"))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, work=str(run.folder / "work")))
    monkeypatch.setattr("jaxmamba3d.training.compilation.memory_limit", lambda mesh: 2**10)
    with pytest.raises(ValueError, match=r"a training step must fit into the device's .* data\.patch_size$"):
        experiment.run_experiment(config)
    assert open_run(config.output).trained_folds() == ()
    metrics = tmp_path / "run" / "fold_0" / "metrics.csv"
    assert not metrics.is_file() or len(metrics.read_text().splitlines()) <= 1
