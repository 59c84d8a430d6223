"""Trainings that start from another run's parameters."""

import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from small_datasets import write_nnunet
from small_runs import params_of, small_config

from jaxmamba3d import experiment
from jaxmamba3d.experiment.epochs import read_epochs
from jaxmamba3d.experiment.pretrained import start_from
from jaxmamba3d.nets import abstract_net
from jaxmamba3d.run import open_run


def named(state):
    return {
        jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(state)
    }


def starting_from(config, source):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, start_from=str(source)))


def test_parameters_of_the_same_shape_are_taken(finished, caplog):
    """Another count of classes leaves the heads as they are, which are said."""
    run, _ = finished
    net = dataclasses.replace(run.net, num_classes=5)
    other = dataclasses.replace(run, net=net).build_net()
    fresh, trained = named(nnx.state(other, nnx.Param)), named(nnx.state(abstract_net(run.net), nnx.Param))
    trained = dict(zip(trained, params_of(run), strict=True))
    with caplog.at_level("INFO", "jaxmamba3d"):
        start_from(str(run.fold_folder(0)), other)
    fresh_names = [name for name in named(nnx.state(other, nnx.Param)) if "heads" in name]
    said = ", ".join(f"heads.{i}.{part}" for i in range(len(fresh_names) // 2) for part in ("bias", "kernel"))
    assert caplog.text.rstrip().endswith(f"fresh: {said}")
    for name, value in named(nnx.state(other, nnx.Param)).items():
        same = value.shape == trained[name].shape
        np.testing.assert_array_equal(value, (trained if same else fresh)[name], err_msg=name)
        assert same == ("heads" not in name)


def test_a_training_starts_there_once(finished, dataset, tmp_path):
    """A learning rate of next to nothing shows where; it goes on when that is gone, but from nowhere else."""
    run, _ = finished
    source = Path(shutil.copytree(run.folder, tmp_path / "source")) / "fold_0"
    config = small_config(dataset, tmp_path / "run", epochs=1, steps_per_epoch=1, validation_steps=1)
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, learning_rate=1e-9))
    config = starting_from(config, source)
    experiment.run_experiment(config)
    for found, expected in zip(params_of(open_run(config.output)), params_of(run), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    shutil.rmtree(source.parent)
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=2))
    experiment.run_experiment(longer)
    assert read_epochs(tmp_path / "run" / "fold_0").done == 2
    with pytest.raises(ValueError, match=r"start_from.*source.*elsewhere"):
        experiment.run_experiment(starting_from(longer, tmp_path / "elsewhere" / "fold_0"))
    with pytest.raises(ValueError, match=r"train\.epochs must be at least the 2 that are trained"):
        experiment.run_experiment(config)


def test_what_cannot_be_started_from_is_said_before_cases_are_preprocessed(finished, tmp_path):
    run, _ = finished
    dataset = write_nnunet(tmp_path / "Dataset002_Other", channels=2)
    config = small_config(dataset, tmp_path / "run")
    deeper = dataclasses.replace(config.net, features=(12, 16))
    cases = [
        (starting_from(config, run.folder), ValueError, "a fold's folder, such as runs/segmamba/fold_0, got"),
        (starting_from(config, tmp_path / "fold_0"), FileNotFoundError, "not a run folder"),
        (
            starting_from(config, run.fold_folder(3)),
            FileNotFoundError,
            "no finished checkpoint to start from",
        ),
        (
            dataclasses.replace(starting_from(config, run.fold_folder(0)), net=deeper),
            ValueError,
            r"a fold of a net like this one, got .*, which has \d+% of its parameters",
        ),
    ]
    for wrong, error, message in cases:
        with pytest.raises(error, match=message):
            experiment.run_experiment(wrong)
    assert not (tmp_path / "run" / "work" / "3d_fullres").exists()
