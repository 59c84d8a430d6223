"""Whole runs on small data: train, stop, go on, predict, score; and the authors' weights as a run."""

import dataclasses
import json
import shutil

import jax
import nibabel
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file
from small_datasets import AFFINE, image_and_label, write_decathlon, write_nifti, write_nnunet

from jaxmamba3d import experiment
from jaxmamba3d.config import (
    DataConfig,
    ExperimentConfig,
    NetOptions,
    OptimConfig,
    PredictConfig,
    TrainConfig,
)
from jaxmamba3d.data import Case, find_images, plan_workspace, read_description, write_segmentation
from jaxmamba3d.data.pipeline import training_batches
from jaxmamba3d.nets import build_net, read_weights, to_official_weights
from jaxmamba3d.run import import_weights, open_run, resolve_net, start_run
from jaxmamba3d.training import restore_params

EPOCHS = 3


def small_config(dataset, output, **train) -> ExperimentConfig:
    return ExperimentConfig(
        output=str(output),
        data=DataConfig(str(dataset), patch_size=(8, 8, 8), batch_size=2),
        net=NetOptions("resunet", (4, 8), blocks_per_stage=(1, 1), decoder_blocks_per_stage=(1,)),
        optim=OptimConfig(schedule="constant", learning_rate=1e-2),
        train=TrainConfig(**({"epochs": EPOCHS, "steps_per_epoch": 4, "validation_steps": 2} | train)),
        predict=PredictConfig(mirroring=False, window_batch=2),
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_nnunet(tmp_path_factory.mktemp("data") / "Dataset001_Small", channels=2)


@pytest.fixture(scope="module")
def finished(dataset, tmp_path_factory):
    """A run from the dataset to its scores."""
    config = small_config(dataset, tmp_path_factory.mktemp("run") / "small")
    scores = experiment.run_experiment(config)
    return open_run(config.output), scores


def params_of(run, which="latest"):
    template = nnx.state(run.abstract_net(), nnx.Param)
    return jax.tree.leaves(restore_params(run.fold_folder(0) / "checkpoints", template, which))


def test_a_run_leaves_all_that_describes_it(finished):
    run, _ = finished
    assert {path.name for path in run.folder.iterdir()} == {
        "config.json",
        "fold_0",
        "labels.json",
        "net.json",
        "nnUNetPlans.json",
        "splits_final.json",
        "versions.json",
        "work",
    }
    assert {path.name for path in run.fold_folder(0).iterdir()} == {
        "checkpoints",
        "curves.png",
        "metrics.csv",
        "overlays.png",
        "scores",
        "tensorboard",
        "validation",
    }
    assert run.net.in_channels == 2
    assert run.configuration.patch_size == (8, 8, 8)
    assert run.trained_folds() == (0,)
    assert "jax" in json.loads((run.folder / "versions.json").read_text())


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


@pytest.mark.parametrize("killed_after_steps", [6, 9])
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
        patch.setattr(experiment, "training_batches", dying)
        with pytest.raises(Killed):
            experiment.run_experiment(config)
    resumed = experiment.run_experiment(config)
    assert resumed.mean == scores.mean
    resumed_run = open_run(config.output)
    for which in ("latest", "best"):
        for one, other in zip(params_of(run, which), params_of(resumed_run, which), strict=True):
            np.testing.assert_array_equal(one, other)
    numbers = [
        [row.split(",")[2:] for row in (r.fold_folder(0) / "metrics.csv").read_text().splitlines()]
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


def test_a_checkpoint_of_other_cases_is_refused(finished, tmp_path):
    run, _ = finished
    shutil.copytree(run.folder, tmp_path / "run")
    splits = json.loads((run.folder / "splits_final.json").read_text())
    splits[0]["train"].pop()
    (tmp_path / "run" / "work" / "splits_final.json").write_text(json.dumps(splits))
    config = dataclasses.replace(run.config, output=str(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"checkpoint .* must be of this net and data .*training cases: "):
        experiment.run_experiment(config)


def test_volumes_of_any_size_are_predicted(finished, tmp_path):
    """Smaller than a window, odd, and much longer than wide; at other spacings."""
    run, _ = finished
    for number, (shape, spacing) in enumerate((((5, 7, 3), 1.0), ((30, 9, 17), 0.7), ((13, 13, 13), 2.5))):
        image, _ = image_and_label(number, 2, shape)
        affine = AFFINE @ np.diag([spacing, 1, 1, 1])
        for channel in range(2):
            write_nifti(tmp_path / "in" / f"x{number}_{channel:04d}.nii.gz", image[..., channel], affine)
    cases = find_images(tmp_path / "in", 2)
    for mirroring in (False, True):
        experiment.predict(run, cases, tmp_path / "out", folds=[0], checkpoint="best", mirroring=mirroring)
        for case in cases:
            image, found = (
                nibabel.load(p) for p in (case.images[0], tmp_path / "out" / f"{case.name}.nii.gz")
            )
            assert found.shape == image.shape
            np.testing.assert_allclose(found.affine, image.affine)
            assert set(np.unique(np.asarray(found.dataobj))) <= {0, 1, 2}


def test_an_interrupted_prediction_goes_on(finished, tmp_path, monkeypatch):
    run, _ = finished
    images = [write_nifti(tmp_path / f"{n}.nii.gz", image_and_label(n, 2, (6, 7, 8))[0]) for n in range(3)]
    cases = [Case(path.name.removesuffix(".nii.gz"), (path,)) for path in images]
    written, interrupt_at = [], ["1.nii.gz"]

    def write(path, *arguments):
        if path.name in interrupt_at:
            raise KeyboardInterrupt
        write_segmentation(path, *arguments)
        written.append(path.name[0])

    def predict(run, **options):
        written.clear()
        experiment.predict(run, cases, tmp_path / "out", folds=[0], mirroring=False, **options)
        return "".join(written)

    monkeypatch.setattr("jaxmamba3d.inference.predict.write_segmentation", write)
    with pytest.raises(KeyboardInterrupt):
        predict(run)
    interrupt_at.clear()
    assert predict(run) == "12"
    assert predict(run) == ""
    write_nifti(images[1], image_and_label(9, 2, (6, 7, 8))[0])
    assert predict(run) == "1"
    (tmp_path / "out" / "2.nii.gz").unlink()
    assert predict(run) == "2"
    farther = dataclasses.replace(run.config, predict=PredictConfig(mirroring=False, tile_step=0.9))
    assert predict(dataclasses.replace(run, config=farther)) == "012"


def test_bad_images_are_named_before_any_is_predicted(finished, tmp_path):
    run, _ = finished
    image, _ = image_and_label(0, 2)
    good = write_nifti(tmp_path / "a.nii.gz", image)
    bad = write_nifti(tmp_path / "b.nii.gz", image[..., :1])
    (text := tmp_path / "c.nii").write_text("no image" * 100)
    cases = [Case("a", (good,)), Case("b", (bad,)), Case("c", (text,))]
    with pytest.raises(ValueError, match="2 of 3 cases are bad") as caught:
        experiment.predict(run, cases, tmp_path / "out", folds=[0])
    _, first, second = str(caught.value).splitlines()
    assert first == f"b: {bad} must be of 2 channels, got 1"
    assert second.startswith(f"c: {text} must be a whole NIfTI file")
    assert not (tmp_path / "out").exists()


def test_images_are_not_overwritten(finished, tmp_path):
    run, _ = finished
    image, _ = image_and_label(0, 2)
    path = write_nifti(tmp_path / "a.nii.gz", image)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="output must be another folder than the images'"):
        experiment.predict(run, [Case("a", (path,))], tmp_path, folds=[0])
    assert path.read_bytes() == before


def test_an_output_that_cannot_be_written_is_said_first(dataset, tmp_path):
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(
            ValueError, match=r"output must be a folder that can be written, got .*file, which is no"
        ):
            experiment.run_experiment(small_config(dataset, output))


def test_patches_that_the_net_cannot_halve_are_named_before_training(dataset, tmp_path):
    config = small_config(dataset, tmp_path / "run")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, patch_size=(8, 9, 8)))
    workspace = plan_workspace(dataset, tmp_path / "work", processes=1)
    with pytest.raises(ValueError, match=r"data.patch_size must be divisible by the net's \d along Y"):
        start_run(config, workspace)


def test_more_stages_than_the_plans_have_are_named(dataset, tmp_path):
    config = small_config(dataset, tmp_path / "run")
    config = dataclasses.replace(config, net=NetOptions(features=(4,) * 9))
    workspace = plan_workspace(dataset, tmp_path / "work", processes=1)
    with pytest.raises(ValueError, match=r"net.features must be at most the plans' \d stages, got 9"):
        start_run(config, workspace)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(dataset, tmp_path):
    """The rate jumps after the first epoch; with another one the run then goes on from there."""
    config = small_config(dataset, tmp_path / "run", epochs=2)
    one = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=1))
    experiment.run_experiment(one)
    wild = dataclasses.replace(config, optim=dataclasses.replace(config.optim, learning_rate=1e30))
    wish = r"the (training|validation) loss is not finite at step \d of epoch 2; .* lower optim.learning_rate"
    with pytest.raises(FloatingPointError, match=wish):
        experiment.run_experiment(wild)
    before = params_of(open_run(config.output))
    assert all(np.isfinite(leaf).all() for leaf in before)
    bfloat16 = dataclasses.replace(config, net=dataclasses.replace(config.net, dtype="bfloat16"))
    experiment.run_experiment(bfloat16)
    after = params_of(open_run(config.output))
    assert all(np.isfinite(leaf).all() for leaf in after)
    assert any((one != other).any() for one, other in zip(before, after, strict=True))


def test_parameters_spoilt_by_the_last_step_of_an_epoch_are_no_checkpoint(dataset, tmp_path):
    config = small_config(dataset, tmp_path / "run", epochs=1, steps_per_epoch=1)
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, learning_rate=1e38))
    with pytest.raises(FloatingPointError, match="the validation loss is not finite at step 1 of epoch 1"):
        experiment.run_experiment(config)
    assert open_run(config.output).trained_folds() == ()


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
    net = resolve_net(NetOptions(features=(4, 8)), plan, 1, {"background": 0, "a": 1})
    assert net.blocks_per_stage == (1, 2)
    assert net.decoder_blocks_per_stage == (4,)  # of the highest resolution, which nnU-Net lists last


def test_no_dataset_is_said_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"data\.dataset must be the folder of the dataset, got nothing"):
        experiment.run_experiment(ExperimentConfig(output=str(tmp_path / "run")))
    with pytest.raises(FileNotFoundError, match="nowhere: no such dataset folder"):
        experiment.run_experiment(small_config(tmp_path / "nowhere", tmp_path / "run"))


def test_voxels_to_ignore_are_no_class(tmp_path):
    folder = write_decathlon(tmp_path / "data")
    content = json.loads((folder / "dataset.json").read_text())
    content["labels"] = {"0": "background", "1": "left", "2": "ignore"}
    (folder / "dataset.json").write_text(json.dumps(content))
    config = small_config(folder, tmp_path / "run", epochs=1)
    scores = experiment.run_experiment(config)
    run = open_run(config.output)
    assert run.net.num_classes == 2
    assert set(scores.structures) == {"left"}
    header = (run.fold_folder(0) / "metrics.csv").read_text().splitlines()[0]
    assert header.endswith("pseudo_dice left,pseudo_dice mean")


class TestImportedWeights:
    @pytest.fixture
    def imported(self, finished, dataset, tmp_path):
        """The finished run's weights, exported under the authors' names and imported again."""
        run, _ = finished
        net = build_net(run.net, rngs=nnx.Rngs(0))
        template = nnx.state(net, nnx.Param)
        nnx.update(net, restore_params(run.fold_folder(0) / "checkpoints", template))
        weights = to_official_weights(net)
        config = dataclasses.replace(run.config, output=str(tmp_path / "imported"))
        description = read_description(dataset / "dataset.json")
        return run, weights, config, description

    def test_they_predict_the_same(self, imported, dataset, tmp_path):
        run, weights, config, description = imported
        made = import_weights(weights, config, run.plans, description)
        assert made.trained_folds() == (0,)
        for one, other in zip(params_of(run), params_of(made), strict=True):
            np.testing.assert_array_equal(one, other)
        cases = find_images(dataset / "imagesTr", 2)[:1]
        for each in (run, made):
            experiment.predict(each, cases, tmp_path / each.folder.name, folds=[0])
        found = [
            np.asarray(nibabel.load(tmp_path / each.folder.name / "case_0.nii.gz").dataobj)
            for each in (run, made)
        ]
        np.testing.assert_array_equal(*found)

    def test_they_are_no_training_to_go_on_with(self, imported, dataset, tmp_path):
        run, weights, config, description = imported
        import_weights(weights, config, run.plans, description)
        shutil.copytree(run.folder / "work", tmp_path / "imported" / "work")
        with pytest.raises(ValueError, match=r"latest/0 must be of a training to go on with, got imported"):
            experiment.run_experiment(config)

    def test_a_fold_is_not_overwritten(self, imported):
        run, weights, config, description = imported
        import_weights(weights, config, run.plans, description)
        with pytest.raises(FileExistsError, match="has checkpoints already"):
            import_weights(weights, config, run.plans, description)

    def test_weights_of_another_net_leave_nothing_behind(self, imported, tmp_path):
        run, weights, config, description = imported
        weights.pop("encoder.stem.convs.0.conv.bias")
        with pytest.raises(
            ValueError, match=r"got 1 missing \(encoder\.stem\.convs\.0\.conv\.bias\) and no surplus"
        ):
            import_weights(weights, config, run.plans, description)
        assert not (tmp_path / "imported").exists()

    def test_save_file_of_them_is_read(self, imported, tmp_path):
        _, weights, _, _ = imported
        save_file(
            {name: np.ascontiguousarray(value) for name, value in weights.items()}, tmp_path / "w.safetensors"
        )
        np.savez(tmp_path / "w.npz", **weights)
        for file in ("w.safetensors", "w.npz"):
            found = read_weights(tmp_path / file)
            assert found.keys() == weights.keys()
            for name, value in weights.items():
                np.testing.assert_array_equal(found[name], value)
