"""A training step gives the same numbers however many devices share the batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tolerances import assert_close

from jaxmamba3d.config import NetConfig, OptimConfig, TrainConfig
from jaxmamba3d.labels import Labels
from jaxmamba3d.nets import build_net
from jaxmamba3d.training import mesh as meshes
from jaxmamba3d.training.mesh import make_mesh, replicate, shard_batch
from jaxmamba3d.training.optimizer import make_optimizer
from jaxmamba3d.training.steps import init_state, make_train_step, make_validation_step

NET = NetConfig("segmamba", 1, 3, (4, 8), ((3, 3, 3),) * 2, ((1, 1, 1), (2, 2, 2)), (1, 1), (1,))
LABELS = Labels({"background": (0,), "a": (1,), "b": (2,)})
BATCH = 8
STEPS = 3


@pytest.fixture(scope="module")
def net():
    return build_net(NET, rngs=nnx.Rngs(0))


def batches():
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        label = rng.integers(-1, 3, (BATCH, 8, 8, 8)).astype(np.int16)
        image = rng.normal(label[..., None], 1).astype(np.float32)
        yield {"image": image, "label": label}


def fresh_state(net, optimizer, mesh):
    """The state that a step may take for its own: the net keeps its arrays."""
    return replicate(mesh, jax.tree.map(jnp.copy, init_state(net, optimizer)))


def trained(net, devices, *, batch_dice):
    """Parameters, losses and validation results after a few steps on the first devices."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("data",))
    optimizer = make_optimizer(OptimConfig(schedule="constant", learning_rate=1e-2), TrainConfig())
    state = fresh_state(net, optimizer, mesh)
    step = make_train_step(
        net, optimizer, labels=LABELS, batch_dice=batch_dice, mirror_axes=(0, 1, 2), seed=7
    )
    losses = []
    for batch in batches():
        state, metrics = step(state, shard_batch(mesh, batch))
        losses.append(float(metrics["loss"]))
    assert int(state.step) == STEPS
    validation = make_validation_step(net, labels=LABELS, batch_dice=batch_dice)(
        state.params, shard_batch(mesh, batch)
    )
    return jax.device_get(state.params), losses, jax.device_get(validation)


def test_eight_devices_train_as_one(net):
    params, losses, (loss, counts) = trained(net, 1, batch_dice=True)
    params_8, losses_8, (loss_8, counts_8) = trained(net, 8, batch_dice=True)
    assert len(set(losses)) == STEPS
    np.testing.assert_allclose(losses_8, losses, rtol=1e-5)
    np.testing.assert_allclose(loss_8, loss, rtol=1e-5)
    # A voxel whose two best classes are as good as equal may go either way.
    for one, eight in zip(counts, counts_8, strict=True):
        assert np.abs(one - eight).max() <= 2
    start = jax.device_get(nnx.state(net, nnx.Param))
    for before, one, eight in zip(*map(jax.tree.leaves, (start, params, params_8)), strict=True):
        moved = np.abs(one - before).max()
        assert moved > 0
        assert np.abs(eight - one).max() <= 1e-2 * moved + 1e-6


def test_a_sharded_step_does_not_wait_inside_the_scan(net):
    """Devices talk once for the gradients and the loss, not at every token: no collective in a loop."""
    mesh = make_mesh(BATCH)
    optimizer = make_optimizer(OptimConfig(), TrainConfig())
    state = fresh_state(net, optimizer, mesh)
    step = make_train_step(net, optimizer, labels=LABELS, batch_dice=False, mirror_axes=(), seed=0)
    text = step.lower(state, shard_batch(mesh, next(batches()))).compile().as_text()
    collectives = ("all-reduce", "all-gather", "all-to-all", "collective-permute")
    talking = {
        computation.split(" ", 1)[0].lstrip("%")
        for computation in text.split("\n\n")
        if any(f" {name}(" in computation or f" {name}-start(" in computation for name in collectives)
    }
    assert talking, "the program was expected to sum its gradients over the devices"
    bodies = {
        part.split("body=%")[1].split(",")[0].split()[0] for part in text.splitlines() if "body=%" in part
    }
    assert bodies, "the program was expected to hold the scan's loops"
    assert not talking & bodies


def test_the_mesh_takes_what_divides_the_batch(caplog):
    assert make_mesh(8).size == 8
    assert make_mesh(6).size == 6
    assert make_mesh(9).size == 3
    assert make_mesh(11).size == 1
    assert not caplog.records  # cores left over are not worth a warning, idle accelerators are


def test_idle_accelerators_are_worth_a_warning(caplog, monkeypatch):
    class Chip:
        platform = "gpu"

    monkeypatch.setattr(meshes.jax, "devices", lambda: [Chip(), Chip(), Chip()])
    monkeypatch.setattr(meshes, "Mesh", lambda devices, names: devices)
    assert len(make_mesh(4)) == 2
    assert "2 of 3 devices are used: the batch size 4 does not divide by more" in caplog.text


def test_bfloat16_nets_train(net):
    half = build_net(dataclasses.replace(NET, dtype="bfloat16"), rngs=nnx.Rngs(0))
    params, losses, _ = trained(half, 1, batch_dice=False)
    _, exact, _ = trained(net, 1, batch_dice=False)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
    assert_close(losses, exact, 0.05)
