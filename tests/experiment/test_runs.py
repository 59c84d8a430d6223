"""Whole runs on small data: train, stop, go on, predict, score."""

import csv
import dataclasses
import importlib.metadata
import json
import shutil
import signal

import jax
import nibabel
import numpy as np
import pytest
from small_datasets import change_json, image_and_label, write_decathlon, write_nifti, write_nnunet
from small_runs import EPOCHS, params_of, small_config

from jaxmamba3d import experiment
from jaxmamba3d.checks import InterruptedTraining
from jaxmamba3d.config import (
    ExperimentConfig,
    NetOptions,
)
from jaxmamba3d.config_json import to_json
from jaxmamba3d.data import open_workspace, plan_workspace
from jaxmamba3d.data.pipeline import training_batches
from jaxmamba3d.experiment.epochs import read_epochs
from jaxmamba3d.labels import Labels
from jaxmamba3d.machine import installed_versions
from jaxmamba3d.run import open_run, resolve_net, start_run
from jaxmamba3d.training import Checkpoints


def test_a_run_leaves_all_that_describes_it(finished):
    run, _ = finished
    assert {path.name for path in run.folder.iterdir()} == {
        "config.json",
        "fold_0",
        "labels.json",
        "net.json",
        "nnUNetPlans.json",
        "orientations.json",
        "postprocessing.json",
        "splits_final.json",
        "versions.json",
        "work",
    }
    postprocessed = {"validation_postprocessed", "scores_postprocessed"}
    assert {path.name for path in run.fold_folder(0).iterdir()} - postprocessed == {
        "checkpoints",
        "curves.png",
        "metrics.csv",
        "overlays.png",
        "patches.png",
        "postprocessing.json",
        "scores",
        "summary.json",
        "tensorboard",
        "validation",
    }
    assert run.net.in_channels == 2
    assert run.configuration.patch_size == (8, 8, 8)
    assert run.trained_folds() == (0,)
    assert "jax" in json.loads((run.folder / "versions.json").read_text())


def test_a_source_tree_that_was_not_installed_runs(monkeypatch):
    version = importlib.metadata.version

    def not_installed(package):
        return version("no such package" if package == "jaxmamba3d" else package)

    monkeypatch.setattr(importlib.metadata, "version", not_installed)
    found = installed_versions()
    assert found["jaxmamba3d"] == "not installed"
    assert found["jax"] == jax.__version__


def test_validation_cases_are_scored_in_their_geometry(finished, dataset):
    run, scores = finished
    names = json.loads((run.folder / "splits_final.json").read_text())[0]["val"]
    assert list(scores.cases) == names
    assert set(scores.structures) == {"left", "right"}
    for name in names:
        image = nibabel.load(dataset / "imagesTr" / f"{name}_0000.nii.gz")
        prediction = nibabel.load(run.fold_folder(0) / "validation" / f"{name}.nii.gz")
        assert prediction.shape == image.shape
        np.testing.assert_array_equal(prediction.affine, image.affine)
    table = (run.fold_folder(0) / "metrics.csv").read_text().splitlines()
    assert len(table) == 1 + EPOCHS


def test_labels_may_have_names_of_their_own(tmp_path):
    """As in Synapse's img0001 and label0001; here with a last axis of one as well."""
    folder = write_decathlon(tmp_path / "data")
    content = json.loads((folder / "dataset.json").read_text())
    for number, entry in enumerate(content["training"]):
        _, label = image_and_label(number)
        write_nifti(folder / "labelsTr" / f"truth_{number}.nii", label[..., None])
        entry["label"] = f"labelsTr/truth_{number}.nii"
    (folder / "dataset.json").write_text(json.dumps(content))
    scores = experiment.run_experiment(small_config(folder, tmp_path / "run", epochs=1))
    assert len(scores.cases) == 1


def test_doing_it_again_trains_no_more_and_scores_the_same(finished):
    run, scores = finished
    before = params_of(run)
    again = experiment.run_experiment(run.config)
    assert again.mean == scores.mean
    for one, other in zip(before, params_of(run), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("killed_after_steps", [6, pytest.param(9, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    finished, dataset, tmp_path, monkeypatch, killed_after_steps
):
    """Killed between checkpoints; only what the last finished epoch left is used."""
    run, scores = finished
    config = dataclasses.replace(run.config, output=str(tmp_path / "run"))

    class Killed(Exception):
        pass

    def dying(*args, **options):
        batches = training_batches(*args, **options)
        if options["seed"] != config.train.seed:
            return batches  # validation
        return DyingIterator(batches)

    class DyingIterator:
        def __init__(self, batches):
            self.batches, self.left = batches, killed_after_steps
            self.get_state, self.set_state = batches.get_state, batches.set_state

        def __iter__(self):
            return self

        def __next__(self):
            self.left -= 1
            if self.left < 0:
                raise Killed
            return next(self.batches)

    with monkeypatch.context() as patch:
        patch.setattr("jaxmamba3d.experiment.training.training_batches", dying)
        with pytest.raises(Killed):
            experiment.run_experiment(config)
    resumed = experiment.run_experiment(config)
    assert resumed.mean == scores.mean
    resumed_run = open_run(config.output)
    for which in ("latest", "best"):
        for one, other in zip(params_of(run, which), params_of(resumed_run, which), strict=True):
            np.testing.assert_array_equal(one, other)
    numbers = [
        [row.split(",")[:-4] for row in (r.fold_folder(0) / "metrics.csv").read_text().splitlines()]
        for r in (run, resumed_run)
    ]
    assert numbers[0] == numbers[1]


def test_a_trained_run_is_not_described_anew(finished, tmp_path):
    run, _ = finished
    shutil.copytree(run.folder, tmp_path / "run")
    other = dataclasses.replace(run.config.net, name="segmamba")
    config = dataclasses.replace(run.config, output=str(tmp_path / "run"), net=other)
    with pytest.raises(ValueError, match=r"the trained run .* got net\.name resunet there, segmamba here$"):
        experiment.run_experiment(config)
    assert open_run(tmp_path / "run").net == run.net


@pytest.mark.parametrize("name", ["config.json", "net.json", "nnUNetPlans.json", "labels.json"])
def test_a_run_that_lost_a_file_is_mended_by_its_training(finished, tmp_path, name):
    run, _ = finished
    path = shutil.copytree(run.folder, tmp_path / "run") / name
    path.unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"not a run folder \(it has no {name}\); train\.py .* restores"
    ):
        open_run(tmp_path / "run")
    start_run(
        dataclasses.replace(run.config, output=str(tmp_path / "run")), open_workspace(run.folder / "work")
    )
    assert open_run(tmp_path / "run").net == run.net
    path.unlink()
    wider = dataclasses.replace(run.config.net, features=(6, 8))
    for data in (run.config.data, dataclasses.replace(run.config.data, fold=1)):
        other = dataclasses.replace(run.config, output=str(tmp_path / "run"), net=wider, data=data)
        with pytest.raises(
            ValueError, match=r"the trained run .*, got net\.features \[4, 8\] there, \[6, 8\] here"
        ):
            start_run(other, open_workspace(run.folder / "work"))
        assert not path.exists()


def test_a_run_whose_description_was_changed_in_vain_goes_on(finished, tmp_path):
    """Its checkpoints tell how it was trained."""
    run, _ = finished
    shutil.copytree(run.folder, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    config = dataclasses.replace(run.config, output=str(tmp_path / "run"))
    optim = dataclasses.replace(config.optim, learning_rate=0.5)
    path.write_text(to_json(dataclasses.replace(config, optim=optim)))
    experiment.run_experiment(config)
    assert open_run(tmp_path / "run").config == config


def test_a_checkpoint_of_other_cases_is_refused(finished, tmp_path):
    run, _ = finished
    shutil.copytree(run.folder, tmp_path / "run")
    splits = json.loads((run.folder / "splits_final.json").read_text())
    splits[0]["train"].pop()
    (tmp_path / "run" / "work" / "splits_final.json").write_text(json.dumps(splits))
    config = dataclasses.replace(run.config, output=str(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"work must be split as its trained folds are, .* got other splits"):
        experiment.run_experiment(config)
    (tmp_path / "run" / "splits_final.json").unlink()
    with pytest.raises(ValueError, match=r"checkpoint .* must be of this net, .*training cases "):
        experiment.run_experiment(config)


def test_deep_supervision_is_kept(finished, tmp_path):
    run, _ = finished
    shutil.copytree(run.folder, tmp_path / "run")
    other = dataclasses.replace(run.config.net, deep_supervision=not run.config.net.deep_supervision)
    config = dataclasses.replace(run.config, output=str(tmp_path / "run"), net=other)
    with pytest.raises(ValueError, match=r"settings\.net\.deep_supervision True there, False here"):
        experiment.run_experiment(config)


def test_patches_that_the_net_cannot_halve_are_named_before_training(dataset, tmp_path):
    config = small_config(dataset, tmp_path / "run")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, patch_size=(8, 9, 8)))
    workspace = plan_workspace(dataset, tmp_path / "work", processes=1)
    with pytest.raises(ValueError, match=r"data.patch_size must be divisible by the net's \d along axis 1"):
        start_run(config, workspace)


def test_more_stages_than_the_plans_have_are_named(dataset, tmp_path):
    config = small_config(dataset, tmp_path / "run")
    config = dataclasses.replace(config, net=NetOptions(features=(4,) * 9))
    workspace = plan_workspace(dataset, tmp_path / "work", processes=1)
    with pytest.raises(ValueError, match=r"net.features must be at most the plans' \d stages, got 9"):
        start_run(config, workspace)


def test_sigterm_while_the_last_checkpoint_is_written_ends_the_run(dataset, tmp_path, monkeypatch):
    close = Checkpoints.close

    def close_late(checkpoints):
        signal.raise_signal(signal.SIGTERM)
        close(checkpoints)

    monkeypatch.setattr(Checkpoints, "close", close_late)
    config = small_config(dataset, tmp_path / "run", epochs=1, steps_per_epoch=1, validation_steps=1)
    with pytest.raises(InterruptedTraining, match="stopped by SIGTERM after epoch 1; the same command"):
        experiment.run_experiment(config)
    run = open_run(config.output)
    assert run.trained_folds() == (0,)
    assert not (run.fold_folder(0) / "validation").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(dataset, tmp_path):
    """The rate jumps after the first epoch; with another one the run then goes on from there."""
    config = small_config(dataset, tmp_path / "run", epochs=2)
    one = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=1))
    experiment.run_experiment(one)
    wild = dataclasses.replace(config, optim=dataclasses.replace(config.optim, learning_rate=1e30))
    with pytest.raises(ValueError, match=r"got settings\.optim\.learning_rate 0\.01 there, 1e\+30 here$"):
        experiment.run_experiment(wild)
    allowed = dataclasses.replace(config.train, allow_changed_settings=True)
    wild = dataclasses.replace(wild, train=allowed)
    wanted = r"step 1 of epoch 2 is not finite, on patches of case_\d.*; .* lower optim\.learning_rate"
    with pytest.raises(FloatingPointError, match=wanted):
        experiment.run_experiment(wild)
    before = params_of(open_run(config.output))
    assert all(np.isfinite(leaf).all() for leaf in before)
    bfloat16 = dataclasses.replace(
        config, net=dataclasses.replace(config.net, dtype="bfloat16"), train=allowed
    )
    experiment.run_experiment(bfloat16)
    after = params_of(open_run(config.output))
    assert all(np.isfinite(leaf).all() for leaf in after)
    assert any((one != other).any() for one, other in zip(before, after, strict=True))


def test_parameters_spoilt_by_the_last_step_of_an_epoch_are_no_checkpoint(dataset, tmp_path):
    config = small_config(dataset, tmp_path / "run", epochs=1, steps_per_epoch=1)
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, learning_rate=1e38))
    with pytest.raises(FloatingPointError, match="step 1 of epoch 1 is not finite"):
        experiment.run_experiment(config)
    assert open_run(config.output).trained_folds() == ()


def test_steps_that_are_not_finite_may_be_skipped(dataset, tmp_path, monkeypatch, caplog):
    """Every third batch is spoilt; the others train on."""
    config = small_config(dataset, tmp_path / "run", epochs=1, steps_per_epoch=6, non_finite="skip")

    def spoilt(*args, **options):
        for number, batch in enumerate(training_batches(*args, **options)):
            if number % 3 == 1 and options["seed"] == config.train.seed:
                batch = batch | {"image": batch["image"] * np.inf}
            yield batch

    class Stateful:
        def __init__(self, batches):
            self.batches = batches

        def __iter__(self):
            return self

        def __next__(self):
            return next(self.batches)

        def get_state(self):
            return {}

    name = "jaxmamba3d.experiment.training.training_batches"
    monkeypatch.setattr(name, lambda *args, **options: Stateful(spoilt(*args, **options)))
    experiment.run_experiment(config)
    run = open_run(config.output)
    assert all(np.isfinite(leaf).all() for leaf in params_of(run))
    with (run.fold_folder(0) / "metrics.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert int(row["skipped_steps"]) == 2
    assert np.isfinite(float(row["train_loss"]))
    skipped = [record.getMessage() for record in caplog.records if record.message.endswith("skipped")]
    assert [words.split(", on patches of case_")[0] for words in skipped] == [
        "step 2 of epoch 1 is not finite",
        "step 5 of epoch 1 is not finite",
    ]


def test_a_run_without_a_checkpoint_may_be_described_anew(dataset, tmp_path):
    config = small_config(dataset, tmp_path / "run")
    workspace = plan_workspace(dataset, tmp_path / "work", processes=1)
    run = start_run(config, workspace)
    (run.fold_folder(0) / "checkpoints" / "latest").mkdir(parents=True)
    other = dataclasses.replace(config, net=dataclasses.replace(config.net, name="segmamba"))
    assert start_run(other, workspace).net.name == "segmamba"


def test_a_shallower_net_keeps_the_decoder_of_its_stages(dataset, tmp_path):
    plan = plan_workspace(dataset, tmp_path / "work", processes=1).plans.configurations["3d_fullres"]
    plan = dataclasses.replace(
        plan,
        features=(4, 8, 16),
        blocks_per_stage=(1, 2, 3),
        decoder_blocks_per_stage=(5, 4),
        kernel_sizes=((3, 3, 3),) * 3,
        strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)),
    )
    net = resolve_net(NetOptions(features=(4, 8)), plan, 1, Labels({"background": (0,), "a": (1,)}))
    assert net.blocks_per_stage == (1, 2)
    assert net.decoder_blocks_per_stage == (4,)  # of the highest resolution, which nnU-Net lists last


def test_no_dataset_is_said_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"data\.dataset must be the folder of the dataset, got nothing"):
        experiment.run_experiment(ExperimentConfig(output=str(tmp_path / "run")))
    with pytest.raises(FileNotFoundError, match="nowhere: no such dataset folder"):
        experiment.run_experiment(small_config(tmp_path / "nowhere", tmp_path / "run"))


def test_regions_and_voxels_to_ignore(tmp_path):
    """From dataset.json to loss, sampling, prediction and scores."""
    folder = write_nnunet(tmp_path / "data")
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    change_json(folder / "dataset.json", labels=labels, regions_class_order=[1, 2])
    for path in (folder / "labelsTr").iterdir():
        label = np.asarray(nibabel.load(path).dataobj).copy()
        label[:, :, -2:] = 3
        write_nifti(path, label)
    scores = experiment.run_experiment(small_config(folder, tmp_path / "run", epochs=1))
    run = open_run(tmp_path / "run")
    assert run.net.num_classes == 2
    assert set(scores.structures) == {"whole", "core"}
    header = (run.fold_folder(0) / "metrics.csv").read_text().splitlines()[0]
    assert "pseudo_dice whole,pseudo_dice core,pseudo_dice mean" in header
    (prediction,) = (run.fold_folder(0) / "validation").glob("*.nii.gz")
    assert set(np.unique(np.asarray(nibabel.load(prediction).dataobj))) <= {0, 1, 2}
    (centres,) = (tmp_path / "run" / "work" / "3d_fullres").glob("case_0/foreground.npz")
    with np.load(centres) as tables:
        assert sorted(tables.files) == ["0", "1", "annotated"]
        label = np.load(centres.with_name("label.npy"))
        assert set(np.unique(label[tuple(tables["annotated"].T)])) == {0, 1, 2}


def test_a_run_that_another_process_trains_is_left_alone(dataset, tmp_path, monkeypatch):
    """Before its first checkpoint, too; another of its folds may be trained meanwhile."""
    config = small_config(dataset, tmp_path / "run")
    workspace = plan_workspace(dataset, config.work_folder, processes=1)
    run = start_run(config, workspace)
    before = {path: path.read_text() for path in run.folder.glob("*.json")}
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=9))
    other = dataclasses.replace(config, net=dataclasses.replace(config.net, name="segmamba"))
    second = dataclasses.replace(config, data=dataclasses.replace(config.data, fold=1))
    in_use = r"a run that no other process trains, got .*fold_0 is in use; wait for it, or name"
    with run.fold_lock(0):
        for start in (experiment.run_experiment, lambda config: start_run(config, workspace)):
            with pytest.raises(ValueError, match=in_use):
                start(longer)
            with pytest.raises(ValueError, match="same net, data and settings as now"):
                start(other)
        monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
        with pytest.raises(ValueError, match=r"is in use; set train\.distributed for processes that belong"):
            start_run(config, workspace)
        assert {path: path.read_text() for path in run.folder.glob("*.json")} == before
        assert start_run(second, workspace).config.data.fold == 1
    assert start_run(other, workspace).net.name == "segmamba"


def test_an_epoch_of_another_length_needs_a_schedule_that_does_not_count_epochs(dataset, tmp_path):
    config = small_config(dataset, tmp_path / "run", epochs=1)
    cosine = dataclasses.replace(config, optim=dataclasses.replace(config.optim, schedule="cosine"))
    experiment.run_experiment(cosine)
    train = dataclasses.replace(config.train, epochs=2, steps_per_epoch=3, allow_changed_settings=True)
    message = r"train\.steps_per_epoch must be as before, 4 steps in finished epochs .*, got 3$"
    with pytest.raises(ValueError, match=message):
        experiment.run_experiment(dataclasses.replace(cosine, train=train))
    assert open_run(tmp_path / "run").config == cosine  # which goes on
    experiment.run_experiment(dataclasses.replace(config, train=train))
    assert read_epochs(tmp_path / "run" / "fold_0").done == 2
