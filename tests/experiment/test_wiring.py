"""What config and plans say reaches the training and the prediction."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import nibabel
import numpy as np
import pytest
from flax import nnx
from nnunet_golden import recorded
from small_datasets import image_and_label, write_nifti
from small_runs import small_config

from jaxmamba3d import experiment
from jaxmamba3d.config import PredictConfig
from jaxmamba3d.data import Case, export_segmentation, load_plans, preprocess_case
from jaxmamba3d.experiment import prediction, training
from jaxmamba3d.inference import make_window_predictor, predict_cases
from jaxmamba3d.inference.sliding_window import predict_volume
from jaxmamba3d.labels import Labels
from jaxmamba3d.run import Run, resolve_net

LABELS = Labels({"background": (0,), "a": (1,), "b": (2,)})


@pytest.fixture
def run(tmp_path):
    config = small_config(
        "data", tmp_path / "run", mirror_axes=(1,), rotate_and_scale=True, vary_intensities=False, seed=3
    )
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, foreground_fraction=0.75))
    config = dataclasses.replace(config, predict=PredictConfig(mirroring=True, tile_step=0.9, window_batch=2))
    plans = load_plans(recorded("mrmask/nnUNetPlans.json"))
    plan = dataclasses.replace(
        plans.configurations["3d_fullres"],
        patch_size=(8, 8, 8),
        batch_size=2,
        batch_dice=True,
        use_mask_for_norm=(False, True),
    )
    plans = dataclasses.replace(plans, configurations={"3d_fullres": plan})
    net = resolve_net(
        dataclasses.replace(config.net, remat=True, dtype="bfloat16", deep_supervision=False), plan, 2, LABELS
    )
    return Run(tmp_path / "run", config, net, plans, LABELS)


def test_the_net_is_as_the_options_say(run):
    assert (run.net.remat, run.net.dtype, run.net.deep_supervision) == (True, "bfloat16", False)


def test_the_task_is_what_config_and_plans_say(run):
    task, plan = run.task(), run.task().augmentation
    assert (task.batch_dice, task.batch_size, task.in_channels) == (True, 2, 2)
    assert (plan.mirror_axes, plan.masked_channels) == ((1,), (1,))
    assert (plan.rotate_and_scale, plan.vary_intensities) == (True, False)


def test_the_seed_decides_on_the_first_parameters(run):
    other = dataclasses.replace(
        run, config=dataclasses.replace(run.config, train=dataclasses.replace(run.config.train, seed=4))
    )
    one, two, again = (jax.tree.leaves(nnx.state(r.build_net(), nnx.Param)) for r in (run, other, run))
    assert any((np.asarray(a) != np.asarray(b)).any() for a, b in zip(one, two, strict=True))
    assert all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(one, again, strict=True))


@pytest.mark.parametrize(
    ("orientations", "forward", "turned"),
    [
        ({"LPS": 2, "LPI": 1}, (0, 1, 2), True),
        ({"LPS": 2, "RAS": 1}, (0, 1, 2), False),
        ({"LPS": 2}, (2, 0, 1), False),
        ({}, (0, 1, 2), False),
    ],
)
def test_pictures_of_patches_are_turned_over_where_all_would_stand_on_their_heads(
    run, monkeypatch, orientations, forward, turned
):
    given = {}
    monkeypatch.setattr(training, "check_window_batch", lambda run: None)
    monkeypatch.setattr(training, "training_batches", lambda *_, **options: options)
    monkeypatch.setattr(training, "train_fold", lambda net, config, task, **options: given.update(options))
    plans = dataclasses.replace(run.plans, transpose_forward=forward)
    workspace = SimpleNamespace(
        split=lambda fold: {"train": ["x"], "val": ["z"]}, cases_folder=str, orientations=orientations
    )
    training.train(dataclasses.replace(run, plans=plans), workspace, 0)
    assert given["upside_down"] == turned


def test_patches_are_drawn_as_the_config_says(run, monkeypatch):
    asked, given = [], {}
    monkeypatch.setattr(training, "check_window_batch", lambda run: None)
    monkeypatch.setattr(
        training, "training_batches", lambda folder, names, **options: asked.append((names, options))
    )
    monkeypatch.setattr(training, "train_fold", lambda net, config, task, **options: given.update(options))
    workspace = SimpleNamespace(
        split=lambda fold: {"train": ["x", "y"], "val": ["z"]},
        cases_folder=lambda name: name,
        orientations={},
    )
    training.train(run, workspace, 0)
    given["validation_batches"]()
    (train_names, train), (val_names, val) = asked
    assert (train_names, val_names) == (["x", "y"], ["z"])
    assert (train["seed"], val["seed"]) == (3, 4)
    assert train["patch_size"] == run.task().augmentation.initial_patch_size != (8, 8, 8)
    assert train["final_patch_size"] == val["final_patch_size"] == val["patch_size"] == (8, 8, 8)
    assert train["foreground_fraction"] == val["foreground_fraction"] == 0.75
    assert given["identity"].keys() >= {
        "net",
        "configuration",
        "labels",
        "patch_size",
        "batch_size",
        "training cases",
        "settings",
    }


def test_what_predictions_are_made_with(run, tmp_path, monkeypatch):
    image = write_nifti(tmp_path / "in" / "a.nii.gz", image_and_label(0, 2)[0])
    taken, restored = {}, []

    def restore(folder, template, which):
        restored.append((folder.parent.name, which))

    monkeypatch.setattr(prediction, "restore_params", restore)
    monkeypatch.setattr(
        prediction, "predict_cases", lambda predictor, weights, *a, **o: taken.update(o, weights=weights)
    )
    made = {}
    monkeypatch.setattr(prediction, "make_net_predictor", lambda *a, **o: made.update(o))
    for mirroring, axes in ((None, (1,)), (True, (1,)), (False, ())):
        restored.clear()
        experiment.predict(
            run, [Case("a", (image,))], tmp_path / "out", folds=[0, 2], checkpoint="best", mirroring=mirroring
        )
        assert restored == [("fold_0", "best"), ("fold_2", "best")]
        assert (made["mirror_axes"], made["window_batch"]) == (axes, 2)
        assert taken["settings"]["mirror_axes"] == axes
        assert taken["tile_step"] == 0.9


def test_cases_are_predicted_by_all_folds_with_the_windows_asked_for(tmp_path):
    """A net that tells its windows apart and folds that disagree."""
    plans = load_plans(recorded("ctiso/nnUNetPlans.json"))
    rng = np.random.default_rng(0)
    image = write_nifti(
        tmp_path / "a.nii.gz",
        rng.normal(0, 500, (30, 20, 24)).astype(np.float32),
        np.diag([1.1, 1.1, 1.5, 1]),
    )

    def net(variables, windows):
        ramp = jnp.arange(8.0)[:, None, None] - 3
        return (windows[..., 0] * ramp)[..., None] * variables

    predictor = make_window_predictor(net, (8, 8, 8), 3, mirror_axes=())
    folds = [np.float32([0, 1, -1]), np.float32([0.2, -3, 2])]
    predict_cases(
        predictor,
        folds,
        [Case("a", (image,))],
        plans,
        tmp_path / "out",
        labels=LABELS,
        tile_step=0.9,
        probabilities=True,
    )
    done = preprocess_case([image], None, plans)
    logits = np.mean([predict_volume(predictor, fold, done.image, tile_step=0.9) for fold in folds], 0)
    segmentation, shares = export_segmentation(logits, done.properties, plans, return_probabilities=True)
    found = np.asarray(nibabel.load(tmp_path / "out" / "a.nii.gz").dataobj).T
    assert np.mean(found != segmentation) < 1e-3
    with np.load(tmp_path / "out" / "a.npz") as file:
        np.testing.assert_allclose(np.moveaxis(file["probabilities"], 0, -1), shares, atol=1e-3)
