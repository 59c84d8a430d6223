"""The selective scan on several devices, against the float32 reference on one."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from over_devices import needs_two_devices
from scan_contract import (
    TESTED,
    assert_close_to_reference,
    assert_like_reference,
    random_arguments,
    value_and_gradients,
)
from tolerances import assert_close, rounding

from jaxmamba3d.checks import UnsupportedError
from jaxmamba3d.ops.selective_scan import blocks, selective_scan
from jaxmamba3d.ops.selective_scan.devices import sequences_a_device
from jaxmamba3d.ops.selective_scan.xla import SequentialScan

PALLAS = [name for name in TESTED if "pallas" in name]
PARAMETERS = ("A", "D", "delta_bias")

needs_four_devices = pytest.mark.skipif(jax.device_count() < 4, reason="there are no four devices")


def mesh_of(count, axis_type, name="data"):
    return jax.make_mesh((count,), (name,), (axis_type,), devices=jax.devices()[:count])


def split_along(what, axis, mesh, arguments):
    """Arguments split along their batch or their channels over an axis of a mesh."""
    batch, channel = (axis, None) if what == "batch" else (None, axis)
    specs = {
        "u": (batch, None, channel),
        "A": (channel, None),
        "B": (batch, None, None),
        "D": (channel,),
        "h0": (batch, channel, None),
    }
    specs |= {"delta": specs["u"], "z": specs["u"], "C": specs["B"], "delta_bias": specs["D"]}
    return {k: jax.device_put(v, NamedSharding(mesh, PartitionSpec(*specs[k]))) for k, v in arguments.items()}


@needs_two_devices
@pytest.mark.parametrize("implementation", TESTED)
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("split", ["batch", "channels"])
def test_two_devices(implementation, axis_type, split):
    arguments, mesh = random_arguments(2, 300, 6, 4), mesh_of(2, axis_type, "x")
    # JAX wants explicit axes to be those of a mesh that is set; without it zeros have none.
    with jax.set_mesh(mesh) if axis_type == AxisType.Explicit else contextlib.nullcontext():
        placed = split_along(split, "x", mesh, arguments)
        assert_like_reference(placed, implementation, rounding("float32", 300), delta_softplus=True)


@needs_two_devices
@pytest.mark.parametrize("implementation", TESTED)
@pytest.mark.parametrize("split", ["u", "B", "A", "u delta B C z"])
def test_explicit_axes_that_split_only_some_arrays(implementation, split):
    """A by channels, others by sequences; the rest lies whole on both devices."""
    mesh = mesh_of(2, AxisType.Explicit)
    arguments = random_arguments(2, 20, 4, 3)
    placed = split_along("batch", "data", mesh, arguments) | {
        "A": jax.device_put(arguments["A"], NamedSharding(mesh, PartitionSpec("data")))
    }
    whole = NamedSharding(mesh, PartitionSpec())
    with jax.set_mesh(mesh):
        mixed = {
            k: placed[k] if k in split.split() else jax.device_put(v, whole) for k, v in arguments.items()
        }
        found = value_and_gradients(mixed, implementation)
    expected = value_and_gradients(arguments, "reference")
    assert_close_to_reference(found, expected, implementation, rounding("float32", 20))


@needs_two_devices
@pytest.mark.parametrize("implementation", PALLAS)
@pytest.mark.parametrize("mesh_is_set", [False, True])
def test_models_of_their_own_are_not_split_over_devices(implementation, mesh_is_set):
    """Two of one sequence each are a batch of two, whose halves have other parameters."""
    arguments = random_arguments(1, 20, 3, 2)
    A = jnp.stack([arguments["A"], 2 * arguments["A"]])
    del arguments["A"]
    mesh = mesh_of(2, AxisType.Auto)
    where = NamedSharding(mesh, PartitionSpec("data"))
    mapped = {k: jnp.stack([v, v]) for k, v in arguments.items() if k not in PARAMETERS}
    shared = {k: v for k, v in arguments.items() if k in PARAMETERS}

    def run(A, mapped):
        return selective_scan(A=A, **mapped, **shared, implementation=implementation)

    with jax.set_mesh(mesh) if mesh_is_set else contextlib.nullcontext():
        y = jax.jit(jax.vmap(run))(A, jax.device_put(mapped, where))
    for i in range(2):
        expected = selective_scan(A=A[i], **arguments, implementation="reference")
        assert_close(y[i], expected, rounding("float32", 20))


@needs_two_devices
@pytest.mark.parametrize("implementation", TESTED)
def test_a_batch_that_does_not_divide_over_the_devices(implementation):
    where = NamedSharding(mesh_of(2, AxisType.Auto), PartitionSpec("data"))
    arguments = random_arguments(3, 20, 4, 3)

    def shared_out(arguments):
        sequences = {k: v for k, v in arguments.items() if k not in PARAMETERS}
        return arguments | jax.lax.with_sharding_constraint(sequences, where)

    @jax.jit
    def gradients(arguments):
        return value_and_gradients(shared_out(arguments), implementation)

    expected = value_and_gradients(arguments, "reference")
    assert_close_to_reference(gradients(arguments), expected, implementation, rounding("float32", 20))


@needs_two_devices
def test_channels_that_devices_share_out_are_not_cut_further():
    arguments = random_arguments(2, 30, 256, 16)
    assert SequentialScan.channel_tile(256, 16) < 256
    placed = split_along("channels", "x", mesh_of(2, AxisType.Explicit, "x"), arguments)
    assert_like_reference(placed, "xla_sequential", rounding("float32", 30), delta_softplus=True)


@needs_two_devices
def test_devices_cut_their_part_as_all_would_be_cut(monkeypatch):
    monkeypatch.setattr(blocks, "PARALLEL_TILES", 2)
    assert blocks.triton_chunk(1, 100, 4) != blocks.triton_chunk(2, 100, 4)
    placed = split_along("batch", "x", mesh_of(2, AxisType.Auto, "x"), random_arguments(2, 100, 4, 3))
    assert_like_reference(placed, "pallas_triton", rounding("float32", 100), delta_softplus=True)


@needs_two_devices
@pytest.mark.parametrize("implementation", TESTED)
@pytest.mark.parametrize(
    ("axis_type", "mesh_is_set"), [(AxisType.Auto, False), (AxisType.Auto, True), (AxisType.Explicit, True)]
)
def test_a_sharded_batch_stays_where_it_is(implementation, axis_type, mesh_is_set):
    """No sequence goes to another device; the gradients of the parameters do, once."""
    mesh = mesh_of(2, axis_type)
    placed = split_along("batch", "data", mesh, random_arguments(2, 40, 3, 2))
    gradient = jax.grad(lambda a: jnp.sum(selective_scan(**a, implementation=implementation) ** 2))
    with jax.set_mesh(mesh) if mesh_is_set else contextlib.nullcontext():
        text = jax.jit(gradient).lower(placed).compile().as_text()
    assert "all-reduce" in text
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert collective not in text


@needs_four_devices
@pytest.mark.parametrize("implementation", PALLAS)
@pytest.mark.parametrize("batch", [2, 3])
def test_a_mesh_that_is_set(implementation, batch):
    """Kernels run on each device's part of the batch, or on all of it where it does not divide.

    Along axes of the mesh that are not the batch's all devices do the same.
    """
    arguments = random_arguments(batch, 20, 3, 2)
    automatic = (AxisType.Auto,) * 2
    with jax.set_mesh(jax.make_mesh((2, 2), ("data", "model"), automatic, devices=jax.devices()[:4])):
        jaxpr = str(
            jax.make_jaxpr(functools.partial(selective_scan, implementation=implementation))(
                *(arguments[k] for k in ["u", "delta", "A", "B", "C"])
            )
        )
        assert "shard_map" in jaxpr
        assert_like_reference(arguments, implementation, rounding("float32", 20))


@needs_two_devices
@pytest.mark.parametrize("implementation", PALLAS)
def test_explicit_axes_of_mapped_sequences(implementation):
    """Each mapped call has parameters of its own, and its batch is split."""
    arguments = random_arguments(2, 20, 3, 2)
    A = jnp.stack([factor * arguments["A"] for factor in (1.0, 2.0, 3.0)])
    del arguments["A"]

    def run(A, arguments, implementation):
        return selective_scan(A=A, **arguments, implementation=implementation)

    mesh = mesh_of(2, AxisType.Explicit)
    placed = split_along("batch", "data", mesh, arguments)
    with jax.set_mesh(mesh):
        y = jax.jit(jax.vmap(functools.partial(run, implementation=implementation), (0, None)))(A, placed)
    for i in range(3):
        assert_close(y[i], run(A[i], arguments, "reference"), rounding("float32", 20))


@needs_two_devices
@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("implementation", ["reference", *TESTED])
def test_inside_of_a_shard_map(implementation, checked):
    """A device's call is one of its own; where JAX checks what varies, it sums the gradients by itself."""
    arguments = random_arguments(2, 40, 6, 4)
    specs = {k: PartitionSpec(None if k in PARAMETERS else "data") for k in arguments}

    def on_each(arguments):
        found = value_and_gradients(arguments, implementation)
        if not checked:
            shared = {f"gradient of {k}" for k in PARAMETERS}
            found = {k: jax.lax.psum(v, "data") if k in shared else v for k, v in found.items()}
        return found

    results = {f"gradient of {k}": spec for k, spec in specs.items()}
    results |= dict.fromkeys(("y", "last_state"), PartitionSpec("data"))
    over_mesh = jax.shard_map(
        on_each,
        mesh=mesh_of(2, AxisType.Auto),
        in_specs=(specs,),
        out_specs=results,
        check_vma=checked,
    )
    if checked and "pallas" in implementation:
        with pytest.raises(UnsupportedError, match=r"over data, it needs check_vma=False"):
            over_mesh(arguments)
        return
    halves = [{k: v if k in PARAMETERS else v[i : i + 1] for k, v in arguments.items()} for i in range(2)]
    expected = [value_and_gradients(half, "reference") for half in halves]
    joined = {
        k: sum(parts) if k.removeprefix("gradient of ") in PARAMETERS else jnp.concatenate(parts)
        for k, parts in ((k, [e[k] for e in expected]) for k in expected[0])
    }
    found = jax.jit(over_mesh)(arguments)
    assert_close_to_reference(found, joined, implementation, rounding("float32", 40))


@needs_two_devices
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_a_device_gets_its_part_of_the_sequences(axis_type):
    mesh = mesh_of(2, axis_type)
    for batch, expected in ((4, 2), (3, 3)):
        u = jnp.ones((batch, 5))
        if batch % 2 == 0:
            u = jax.device_put(u, NamedSharding(mesh, PartitionSpec("data")))
        assert sequences_a_device(u) == (batch if axis_type == AxisType.Auto else expected)
        with jax.set_mesh(mesh):
            assert sequences_a_device(u) == expected
