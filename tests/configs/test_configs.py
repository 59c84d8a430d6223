"""The configs in the repository: valid, wherever they are loaded from, with nets that can be built."""

import json
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from nnunet_golden import recorded
from real_data import AUTHORS, ROOT

from jaxmamba3d import cli, experiment
from jaxmamba3d.bench.shapes import paper_net
from jaxmamba3d.data import cases_in_folds, load_plans, read_description
from jaxmamba3d.nets import build_net
from jaxmamba3d.run import resolve_net

CONFIGS = sorted((ROOT / "configs").glob("*.py"))
PAPER = {"acdc", "acdc_small", "brain_tumour", "synapse"}


def load(name, monkeypatch, folder):
    """From another folder than the repository's."""
    monkeypatch.chdir(folder)
    return cli.load_config(ROOT / "configs" / f"{name}.py")


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
    if config.net.features is None:  # the nets of the paper's size are built in tests/nets
        assert net == paper_net(net.name, path.stem, dtype=net.dtype, remat=net.remat)
    else:
        params = nnx.state(nnx.eval_shape(lambda: build_net(net, rngs=nnx.Rngs(0))), nnx.Param)
        assert nnx.to_flat_state(params)
    patch = np.array(config.data.patch_size or configuration.patch_size)
    assert (patch % np.array(net.total_stride) == 0).all()


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
