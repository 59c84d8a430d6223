"""The configs in the repository: valid, wherever they are loaded from, with nets that can be built."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from nnunet_golden import recorded
from real_data import AUTHORS, ROOT

from jaxmamba3d import experiment
from jaxmamba3d.bench.shapes import paper_net
from jaxmamba3d.config import OptimConfig, TrainConfig
from jaxmamba3d.config_file import load_config
from jaxmamba3d.data import cases_in_folds, load_plans, read_description
from jaxmamba3d.nets import abstract_net
from jaxmamba3d.run import resolve_net
from jaxmamba3d.training import make_optimizer

CONFIGS = sorted((ROOT / "configs").glob("*.py"))
PAPER = {"acdc", "acdc_small", "brain_tumour", "synapse"}


PUBLISHED = {
    "segmamba": (1000, "cosine"),
    "bisegmamba": (300, "cosine"),
    "segmambaskip": (1000, "cosine"),
    "multisegmamba": (300, "one_cycle"),
}


def load(name, monkeypatch, folder, word=""):
    """From another folder than the repository's."""
    monkeypatch.chdir(folder)
    return load_config(f"{ROOT}/configs/{name}.py{word}")


def test_there_is_one_for_each_dataset_of_the_paper():
    assert PAPER | {"quickstart", "hippocampus"} <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_its_net_can_be_built(path, tmp_path, monkeypatch):
    config = load(path.stem, monkeypatch, tmp_path)
    assert config.output == f"runs/{path.stem}"
    if config.data.phantoms is not None:
        return
    if config.data.plans is None:
        plans, folder = load_plans(recorded("hippo/nnUNetPlans.json")), AUTHORS / "Dataset027_ACDC"
    else:
        plans, folder = load_plans(config.data.plans), Path(config.data.plans).parent
    description = read_description(folder / "dataset.json")
    configuration = plans.configurations[config.data.configuration]
    net = resolve_net(config.net, configuration, len(description.channel_names), description.labels)
    if path.stem in PAPER and config.net.features is None:  # built below and in tests/bench
        assert net == paper_net(net.name, path.stem, dtype=net.dtype, remat=net.remat)
    else:
        params = nnx.state(abstract_net(net), nnx.Param)
        assert nnx.to_flat_state(params)
    patch = np.array(config.data.patch_size or configuration.patch_size)
    assert (patch % np.array(net.total_stride) == 0).all()


@pytest.mark.parametrize("net", PUBLISHED)
@pytest.mark.parametrize("name", sorted(PAPER - {"acdc_small"}))
def test_the_paper_s_nets_are_trained_as_published(name, net, tmp_path, monkeypatch):
    config = load(name, monkeypatch, tmp_path, f":{net}")
    default = load(name, monkeypatch, tmp_path)
    assert (config.train.epochs, config.optim.schedule) == PUBLISHED[net]
    assert config.output == (f"runs/{name}" if net == "multisegmamba" else f"runs/{name}_{net}")
    assert (config == default) == (net == "multisegmamba")
    assert config.data == default.data
    # nnUNetTrainerVanillaRAdam3en4, its OneCycleLR, and nnU-Net's steps and augmentation.
    optim = {"learning_rate": 3e-4, "weight_decay": 3e-5, "gradient_clip": 12.0, "schedule_unit": "epoch"}
    optim |= {"cosine_period": 100, "cosine_floor": 5e-6, "warmup_fraction": 0.1, "final_div_factor": 1e8}
    assert config.optim == OptimConfig(schedule=config.optim.schedule, **optim)
    train = {"steps_per_epoch": 250, "validation_steps": 50, "mirror_axes": (0, 1, 2)}
    assert config.train == TrainConfig(epochs=config.train.epochs, **train)
    assert (config.train.rotate_and_scale, config.train.vary_intensities) == (True, True)
    make_optimizer(config.optim, config.train)
    plans = load_plans(config.data.plans)
    description = read_description(Path(config.data.plans).parent / "dataset.json")
    configuration = plans.configurations["3d_fullres"]
    resolved = resolve_net(config.net, configuration, len(description.channel_names), description.labels)
    assert resolved == paper_net(net, name, dtype="bfloat16", remat=True)


@pytest.mark.parametrize("name", ["bisegmamba", "segmambaskip"])  # the others in tests/bench
def test_nets_of_the_paper_s_size_can_be_built(name):
    net = paper_net(name, "acdc", dtype="bfloat16", remat=True)
    params = nnx.state(abstract_net(net), nnx.Param)
    assert 50e6 < sum(leaf.size for leaf in jax.tree.leaves(params)) < 100e6


def test_other_nets_have_no_published_settings(tmp_path, monkeypatch):
    for word in ("resunet", ""):
        message = rf"the net after the colon must be one of multisegmamba, .*, got '{word}'"
        with pytest.raises(ValueError, match=message):
            load("acdc", monkeypatch, tmp_path, f":{word}")
    message = r"quickstart\.py's get_config\(\) must be called without a word after a colon, got segmamba"
    with pytest.raises(ValueError, match=message):
        load("quickstart", monkeypatch, tmp_path, ":segmamba")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.py: no such config file"):
        load("nowhere", monkeypatch, tmp_path, ":segmamba")


@pytest.mark.parametrize("name", sorted(PAPER))
def test_the_authors_splits_are_found(name, tmp_path, monkeypatch):
    config = load(name, monkeypatch, tmp_path)
    splits = json.loads(Path(config.data.splits).read_text())
    described = json.loads((Path(config.data.splits).parent / "dataset.json").read_text())
    assert len(splits) == 5
    assert len(cases_in_folds(splits)) == described["numTraining"]


@pytest.mark.parametrize("name", sorted(PAPER | {"hippocampus"}))
def test_a_dataset_that_is_not_there_is_said_where_to_get(name, tmp_path, monkeypatch):
    config = load(name, monkeypatch, tmp_path)
    message = r"no such dataset folder; name it with --data\.dataset, or get it from https?://\S+"
    with pytest.raises(FileNotFoundError, match=message):
        experiment.prepare(config)
    assert not list(tmp_path.iterdir())
