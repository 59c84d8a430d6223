"""A training step gives the same numbers however many devices share the batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType
from tolerances import assert_close

from jaxmamba3d.augment import AugmentationPlan
from jaxmamba3d.config import NetConfig, OptimConfig, TrainConfig
from jaxmamba3d.labels import Labels
from jaxmamba3d.nets import build_net
from jaxmamba3d.ops.backend import BATCH_AXES
from jaxmamba3d.training import mesh as meshes
from jaxmamba3d.training.mesh import make_mesh, mesh_over, parameter_spec, shard_batch
from jaxmamba3d.training.optimizer import make_optimizer
from jaxmamba3d.training.steps import abstract_state, init_state, make_train_step, make_validation_step

NET = NetConfig("segmamba", 1, 3, (4, 8), ((3, 3, 3),) * 2, ((1, 1, 1), (2, 2, 2)), (1, 1), (1,))
LABELS = Labels({"background": (0,), "a": (1,), "b": (2,)})
MIRRORING = AugmentationPlan((8, 8, 8), rotate_and_scale=False, vary_intensities=False)
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
    return init_state(jax.tree.map(jnp.copy, nnx.state(net, nnx.Param)), optimizer, mesh)


def trained(net, devices, *, batch_dice, accumulate=1, shard_parameters=1):
    """Parameters, losses and validation results after a few steps on the first devices."""
    shape = (devices // shard_parameters, shard_parameters)
    mesh = jax.make_mesh(shape, BATCH_AXES, (AxisType.Auto,) * 2, devices=jax.devices()[:devices])
    optimizer = make_optimizer(OptimConfig(schedule="constant", learning_rate=1e-2), TrainConfig())
    state = fresh_state(net, optimizer, mesh)
    step = make_train_step(
        net,
        optimizer,
        labels=LABELS,
        batch_dice=batch_dice,
        augmentation=MIRRORING,
        seed=7,
        accumulate=accumulate,
    )
    losses = []
    with jax.set_mesh(mesh):
        for batch in batches():
            state, metrics = step(state, shard_batch(mesh, batch))
            losses.append(float(metrics["loss"]))
            assert metrics["finite"]
        assert int(state.step) == STEPS
        validation = make_validation_step(net, labels=LABELS, batch_dice=batch_dice, accumulate=accumulate)(
            state.params, shard_batch(mesh, batch)
        )
    return jax.device_get(state.params), losses, jax.device_get(validation)


@pytest.fixture(scope="module")
def on_one_device(net):
    return {batch_dice: trained(net, 1, batch_dice=batch_dice) for batch_dice in (True, False)}


@pytest.mark.parametrize("accumulate", [1, 4])
def test_blocks_that_are_recomputed_change_no_number(net, on_one_device, accumulate):
    graph = nnx.graphdef(build_net(dataclasses.replace(NET, remat=True), rngs=nnx.Rngs(0)))
    recomputing = nnx.merge(graph, nnx.state(net))
    _, losses, (loss, counts, _) = on_one_device[True]
    _, other_losses, (other_loss, other_counts, _) = trained(
        recomputing, 1, batch_dice=True, accumulate=accumulate
    )
    np.testing.assert_allclose(other_losses, losses, rtol=1e-5)
    np.testing.assert_allclose(other_loss, loss, rtol=1e-5)
    for one, other in zip(counts, other_counts, strict=True):
        assert np.abs(one - other).max() <= 2


@pytest.mark.parametrize(
    ("devices", "batch_dice", "options"),
    [
        (8, True, {}),
        (8, False, {"shard_parameters": 4}),
        (1, True, {"accumulate": 4}),
        (2, False, {"accumulate": 2, "shard_parameters": 2}),
    ],
)
def test_the_global_batch_decides(net, on_one_device, monkeypatch, devices, batch_dice, options):
    """However many devices share it, in however many parts it comes, wherever parameters are."""
    monkeypatch.setattr(meshes, "SMALLEST_SHARED", 64)
    params, losses, (loss, counts, found) = on_one_device[batch_dice]
    others, other_losses, (other_loss, other_counts, other_found) = trained(
        net, devices, batch_dice=batch_dice, **options
    )
    assert len(set(losses)) == STEPS
    np.testing.assert_allclose(other_losses, losses, rtol=1e-5)
    np.testing.assert_allclose(other_loss, loss, rtol=1e-5)
    # A voxel whose two best classes are as good as equal may go either way.
    for one, other in zip(counts, other_counts, strict=True):
        assert np.abs(one - other).max() <= 2
    assert found.shape == (BATCH, 8, 8, 8)
    assert (found != other_found).sum() <= 2
    start = jax.device_get(nnx.state(net, nnx.Param))
    for before, one, other in zip(*map(jax.tree.leaves, (start, params, others)), strict=True):
        moved = np.abs(one - before).max()
        assert moved > 0
        assert np.abs(other - one).max() <= 1e-2 * moved + 1e-6


def test_parameters_are_shared_out(net, monkeypatch):
    monkeypatch.setattr(meshes, "SMALLEST_SHARED", 64)
    mesh = make_mesh(BATCH, shard_parameters=4)
    optimizer = make_optimizer(OptimConfig(), TrainConfig())
    state = fresh_state(net, optimizer, mesh)
    step = make_train_step(net, optimizer, labels=LABELS, batch_dice=False, augmentation=MIRRORING, seed=0)
    with jax.set_mesh(mesh):
        after, _ = step(state, shard_batch(mesh, next(batches())))
    held = sum(x.addressable_shards[0].data.size for x in jax.tree.leaves(after))
    assert held < 0.4 * sum(x.size for x in jax.tree.leaves(after))


def test_where_an_array_is_shared_out():
    spec = jax.sharding.PartitionSpec
    assert parameter_spec((3, 3, 3, 64, 128), 4) == spec(None, None, None, None, "parameters")
    assert parameter_spec((1024, 30), 8) == spec("parameters")
    assert parameter_spec((129, 255), 2) == spec()
    assert parameter_spec((64,), 2) == spec()  # too small
    assert parameter_spec((4096, 64), 1) == spec()


@pytest.mark.parametrize("shard_parameters", [1, 4])
def test_the_state_is_known_before_it_is_there(net, shard_parameters, monkeypatch):
    monkeypatch.setattr(meshes, "SMALLEST_SHARED", 64)
    optimizer = make_optimizer(OptimConfig(), TrainConfig())
    mesh = mesh_over(jax.devices()[:4], shard_parameters)
    known, state = abstract_state(net, optimizer, mesh), fresh_state(net, optimizer, mesh)
    assert jax.tree.structure(known) == jax.tree.structure(state)
    for there, here in zip(jax.tree.leaves(known), jax.tree.leaves(state), strict=True):
        assert (there.shape, there.dtype, there.sharding) == (here.shape, here.dtype, here.sharding)
    parts = [leaf for leaf in jax.tree.leaves(state) if not leaf.is_fully_replicated]
    assert bool(parts) == (shard_parameters > 1)


def flops_of_a_step_in_two_parts(net, batch_dice):
    optimizer = make_optimizer(OptimConfig(), TrainConfig())
    step = make_train_step(
        net, optimizer, labels=LABELS, batch_dice=batch_dice, augmentation=MIRRORING, seed=0, accumulate=2
    )
    state = fresh_state(net, optimizer, mesh_over(jax.devices()[:1]))
    return step.lower(state, next(batches())).compile().cost_analysis()["flops"]


def test_only_the_dice_of_the_batch_costs_a_forward_pass_more(net):
    assert flops_of_a_step_in_two_parts(net, batch_dice=True) > 1.2 * flops_of_a_step_in_two_parts(
        net, batch_dice=False
    )


def test_a_step_that_is_not_finite_changes_nothing(net):
    mesh = make_mesh(BATCH)
    optimizer = make_optimizer(OptimConfig(), TrainConfig())
    state = fresh_state(net, optimizer, mesh)
    before = jax.device_get(state)
    step = make_train_step(net, optimizer, labels=LABELS, batch_dice=False, augmentation=MIRRORING, seed=0)
    batch = next(batches())
    batch["image"][3, 4, 4, 4] = np.inf
    with jax.set_mesh(mesh):
        after, metrics = step(state, shard_batch(mesh, batch))
    assert not metrics["finite"]
    assert after.step == 1
    for one, other in zip(*map(jax.tree.leaves, (before[:2], jax.device_get(after[:2]))), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_sharded_step_does_not_wait_inside_the_scan(net):
    """Devices talk once for the gradients and the loss, not at every token: no collective in a loop."""
    mesh = make_mesh(BATCH)
    optimizer = make_optimizer(OptimConfig(), TrainConfig())
    state = fresh_state(net, optimizer, mesh)
    step = make_train_step(net, optimizer, labels=LABELS, batch_dice=False, augmentation=MIRRORING, seed=0)
    with jax.set_mesh(mesh):
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


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"train\.accumulate must be a divisor of the batch size 8, got 3"):
        make_mesh(8, accumulate=3)
    wanted = r"train\.shard_parameters must be a number of the 8 devices, .* divides 6 patches, got 4"
    with pytest.raises(ValueError, match=wanted):
        make_mesh(6, shard_parameters=4)


def test_the_mesh_takes_what_divides_the_batch(caplog):
    assert make_mesh(8).size == 8
    assert make_mesh(6).size == 6
    assert make_mesh(9).size == 3
    assert make_mesh(11).size == 1
    assert make_mesh(24, accumulate=4).size == 6
    assert make_mesh(4, shard_parameters=2).devices.shape == (2, 2)
    assert not caplog.records  # cores left over are not worth a warning, idle accelerators are


def test_idle_accelerators_are_worth_a_warning(caplog, monkeypatch):
    class Chip:
        platform = "gpu"

    monkeypatch.setattr(meshes.jax, "devices", lambda: [Chip(), Chip(), Chip()])
    monkeypatch.setattr(meshes, "mesh_over", lambda devices, _: devices)
    assert len(make_mesh(4)) == 2
    assert "2 of 3 devices are used: the batch size 4 does not divide by more" in caplog.text


def test_bfloat16_nets_train(on_one_device):
    half = build_net(dataclasses.replace(NET, dtype="bfloat16"), rngs=nnx.Rngs(0))
    params, losses, _ = trained(half, 1, batch_dice=False)
    _, exact, _ = on_one_device[False]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
    assert_close(losses, exact, 0.05)


def test_each_step_and_each_seed_augments_otherwise():
    """The loss of the same batch before any parameter moves."""
    net = build_net(
        NetConfig("resunet", 1, 2, (2, 4), ((3, 3, 3),) * 2, ((1, 1, 1), (2, 2, 2)), (1, 1), (1,)),
        rngs=nnx.Rngs(0),
    )
    optimizer = make_optimizer(OptimConfig(), TrainConfig())
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.normal(size=(2, 4, 4, 4, 1)).astype(np.float32),
        "label": rng.integers(0, 2, (2, 4, 4, 4)).astype(np.int16),
    }
    plan = AugmentationPlan((4, 4, 4), rotate_and_scale=False, mirror_axes=(), vary_intensities=True)
    labels = Labels({"background": (0,), "a": (1,)})

    def losses(seed):
        step = make_train_step(net, optimizer, labels=labels, batch_dice=False, augmentation=plan, seed=seed)
        state = fresh_state(net, optimizer, mesh_over(jax.devices()[:1]))
        return [
            float(step(jax.tree.map(jnp.copy, state._replace(step=jnp.int32(n))), batch)[1]["loss"])
            for n in range(8)
        ]

    first, other = losses(0), losses(1)
    assert len(set(first)) > 2
    assert first != other
