"""The kernels lower for the chips they are meant for, on hosts that have none."""

import functools
import logging
import re

import jax
import jax.numpy as jnp
import pytest
from compiled_for_tpus import printed_by
from jax.sharding import PartitionSpec

from jaxmamba3d.checks import UnsupportedError
from jaxmamba3d.ops.backend import compile_for
from jaxmamba3d.ops.selective_scan import api, selective_scan, unsupported_reason
from jaxmamba3d.ops.selective_scan.blocks import override_blocks
from jaxmamba3d.ops.selective_scan.pallas_mosaic_gpu import OLDEST_JAX

KERNELS = {
    "pallas_triton": ("gpu", "cuda", r"@__gpu\$xla\.gpu\.triton", 4),
    "pallas_mosaic_gpu": ("gpu", "cuda", "@mosaic_gpu", 4),
    "pallas_mosaic_tpu": ("tpu", "tpu", "@tpu_custom_call", 2),
}
"""By name: backend, platform, the call that a kernel becomes, and how many forward and backward have."""
SHAPES = [(2, 65536, 64, 32), (1, 1000, 128, 24), (1, 53, 5, 7), (1, 64, 640, 256), (1, 1000, 33, 100)]
CALLS = [
    (name, shape) for name in KERNELS for shape in (SHAPES[:2] if name == "pallas_mosaic_gpu" else SHAPES)
]


def abstract_arguments(batch, length, channels, state, dtype, place=None):
    def array(*shape, dtype=dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    float32 = functools.partial(array, dtype=jnp.float32)
    return {
        "u": array(batch, length, channels),
        "delta": array(batch, length, channels),
        "A": float32(channels, state),
        "B": array(batch, length, state),
        "C": array(batch, length, state),
        "D": float32(channels),
        "z": array(batch, length, channels),
        "delta_bias": float32(channels),
        "h0": float32(batch, channels, state),
    }


def forward_and_backward(implementation, reverse, arguments, g_y, g_last):
    scan = functools.partial(
        selective_scan,
        delta_softplus=True,
        reverse=reverse,
        return_last_state=True,
        implementation=implementation,
    )
    y, vjp = jax.vjp(lambda arguments: scan(**arguments), arguments)
    return y, vjp((g_y, g_last))


def abstract_mesh(backend, devices=1):
    """Newer versions of jax ask for the GPU's kind when they lower a Triton kernel."""
    kind = {}
    if backend == "gpu" and jax.__version_info__ >= (0, 11):
        from jax._src.mesh import AbstractDevice

        kind["abstract_device"] = AbstractDevice("NVIDIA H100 80GB HBM3", num_cores=None, platform="gpu")
    return jax.sharding.AbstractMesh((devices,), ("x",), axis_types=(jax.sharding.AxisType.Auto,), **kind)


def lowered(implementation, shape, dtype, reverse=False, devices=1, run=forward_and_backward):
    """With several devices, inside of a `jax.shard_map` that checks what varies over them."""
    backend, platform, *_ = KERNELS[implementation]
    arguments = abstract_arguments(*shape, dtype)
    gradients = arguments["u"], arguments["h0"]
    function = functools.partial(run, implementation, reverse)
    mesh = abstract_mesh(backend, devices)
    if devices > 1:
        specs = {k: PartitionSpec(None if k in ("A", "D", "delta_bias") else "x") for k in arguments}
        split = specs["u"]
        function = jax.shard_map(
            function, mesh=mesh, in_specs=(specs, split, split), out_specs=(split, (specs,))
        )
    with compile_for(backend), jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(function).trace(arguments, *gradients)
        return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("implementation", "shape"), CALLS, ids=str)
def test_it_lowers(implementation, shape, dtype):
    if implementation == "pallas_mosaic_gpu" and jax.__version_info__ < OLDEST_JAX:
        pytest.skip("pallas_mosaic_gpu needs jax 0.11 or newer")
    _, _, target, kernels = KERNELS[implementation]
    assert len(re.findall(target, lowered(implementation, shape, dtype, reverse=True))) == kernels


@pytest.mark.parametrize("implementation", KERNELS)
def test_it_lowers_where_numbers_are_64_bits_wide(implementation):
    if implementation == "pallas_mosaic_gpu" and jax.__version_info__ < OLDEST_JAX:
        pytest.skip("pallas_mosaic_gpu needs jax 0.11 or newer")
    _, _, target, kernels = KERNELS[implementation]
    with jax.enable_x64(True):
        text = lowered(implementation, (1, 512, 64, 32), "bfloat16")
    assert len(re.findall(target, text)) == kernels


@pytest.mark.parametrize("implementation", ["pallas_triton", "pallas_mosaic_tpu"])
def test_calls_alike_are_lowered_once_and_calls_in_other_blocks_again(implementation):
    def three_calls(*call):
        *call, g_y, g_last = call
        first = forward_and_backward(*call, 2 * g_y, g_last)
        (y, _), _ = first
        second = forward_and_backward(*call, 2 * y, g_last)
        with override_blocks(chunk=128):
            return first, second, forward_and_backward(*call, 2 * g_y, g_last)

    _, _, target, kernels = KERNELS[implementation]
    text = lowered(implementation, (1, 1024, 64, 32), "bfloat16", run=three_calls)
    assert len(re.findall(target, text)) == 2 * kernels


@pytest.mark.parametrize("implementation", ["pallas_triton", "pallas_mosaic_tpu"])
def test_it_lowers_inside_of_a_shard_map(implementation):
    """Also for as many numbers as 32 bits cannot count."""
    _, _, target, kernels = KERNELS[implementation]
    text = lowered(implementation, (128, 2**19, 64, 32), "float32", devices=2)
    assert len(re.findall(target, text)) == kernels
    assert "all_reduce" in text


@pytest.mark.skipif(jax.__version_info__ < OLDEST_JAX, reason="pallas_mosaic_gpu needs jax 0.11 or newer")
def test_mosaic_gpu_refuses_what_jax_checks_inside_of_a_shard_map():
    with pytest.raises(UnsupportedError, match="over x, it needs check_vma=False"):
        lowered("pallas_mosaic_gpu", (2, 512, 64, 32), "float32", devices=2)


@pytest.mark.skipif(jax.__version_info__ < OLDEST_JAX, reason="pallas_mosaic_gpu needs jax 0.11 or newer")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("states", range(8, 65, 8))
def test_mosaic_gpu_lowers_what_it_does_not_refuse(states, dtype):
    shape = (1, 300, 64, states)
    with compile_for("gpu"):
        reason = unsupported_reason("pallas_mosaic_gpu", **abstract_arguments(*shape, dtype))
    if dtype == "bfloat16" and states in (40, 56):
        assert "it copies multiples of 128 bytes" in reason
    else:
        assert reason is None
        assert "@mosaic_gpu" in lowered("pallas_mosaic_gpu", shape, dtype)


@pytest.mark.skipif(jax.__version_info__ < OLDEST_JAX, reason="pallas_mosaic_gpu needs jax 0.11 or newer")
def test_mosaic_gpu_refuses_what_no_grid_holds():
    with compile_for("gpu"):
        reason = unsupported_reason("pallas_mosaic_gpu", **abstract_arguments(1, 2**21, 64, 64, "float32"))
        assert reason == "CUDA's grids end at 65535 sequences or chunks, and this call has 131072"
        shorter = abstract_arguments(1, 2**19, 64, 64, "float32")
        assert unsupported_reason("pallas_mosaic_gpu", **shorter) is None


class Amd:
    platform, compute_capability = "gpu", "gfx942"


def test_a_gpu_that_is_none_of_nvidias_gets_plain_xla(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [Amd()])
    arguments = abstract_arguments(1, 8, 64, 8, "float32")
    with compile_for("gpu"):
        assert "of compute capability gfx942" in unsupported_reason("pallas_triton", **arguments)
        assert "selective_scan_" not in str(jax.make_jaxpr(lambda a: selective_scan(**a))(arguments))


@pytest.mark.parametrize(("backend", "kernel"), [("gpu", "pallas_triton"), ("tpu", "pallas_mosaic_tpu")])
def test_it_is_the_choice_on_its_chip_and_said_once(backend, kernel, caplog):
    arguments = abstract_arguments(1, 300, 4, 3, "float32")
    api._log_choice.cache_clear()
    with compile_for(backend), caplog.at_level(logging.INFO, "jaxmamba3d"):
        for _ in range(2):
            jaxpr = str(jax.make_jaxpr(lambda a: selective_scan(**a))(arguments))
    assert "selective_scan_" in jaxpr
    assert [r.message for r in caplog.records].count(f"selective_scan on {backend}: {kernel}") == 1


@pytest.mark.parametrize(
    ("backend", "reasons"),
    [
        ("gpu", r" \(not pallas_triton: it holds at most 256 .* 257; not pallas_mosaic_gpu: it .*\)"),
        ("tpu", r" \(not pallas_mosaic_tpu: it holds at most 256 states, and A has 257\)"),
        ("metal", ""),
    ],
)
def test_plain_xla_is_the_choice_where_no_kernel_can(monkeypatch, caplog, backend, reasons):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    arguments = abstract_arguments(1, 8, 4, 257, "float32")
    api._log_choice.cache_clear()
    with caplog.at_level(logging.INFO, "jaxmamba3d"):
        jax.eval_shape(lambda a: selective_scan(**a), arguments)
    (record,) = caplog.records
    assert re.fullmatch(f"selective_scan on {backend}: xla_associative{reasons}", record.message)


def test_what_a_kernel_cannot_do_is_said_or_left_to_another():
    wide = abstract_arguments(1, 8, 4, 257, "float32")
    with compile_for("gpu"):
        small = abstract_arguments(1, 8, 4, 3, "float8_e4m3fn")
        reason = unsupported_reason("pallas_triton", **small)
        assert reason == "it takes float16, bfloat16 and float32, and not float8_e4m3fn"
        with pytest.raises(
            UnsupportedError, match=r"pallas_triton cannot run this call: .* at most 256 states"
        ):
            jax.eval_shape(functools.partial(selective_scan, implementation="pallas_triton"), **wide)
        assert "selective_scan_" not in str(jax.make_jaxpr(lambda a: selective_scan(**a))(wide))
        with pytest.raises(UnsupportedError, match="it lowers through Mosaic, for TPUs"):
            jax.eval_shape(functools.partial(selective_scan, implementation="pallas_mosaic_tpu"), **wide)
    with compile_for("tpu"):
        half = abstract_arguments(1, 8, 4, 3, "float16")
        assert (
            unsupported_reason("pallas_mosaic_tpu", **half)
            == "it takes float32 and bfloat16, and not float16"
        )
        for channels, reason in (
            (8192, None),
            (16384, "16384 channels of 256 states are more than its memory (VMEM) holds"),
        ):
            many = abstract_arguments(1, 8, channels, 256, "float32")
            assert unsupported_reason("pallas_mosaic_tpu", **many) == reason


@pytest.mark.parametrize(
    ("backend", "states", "dtypes", "reason"),
    [
        ("tpu", 3, {}, "it lowers through Triton, for NVIDIA GPUs"),
        ("gpu", 256, {"u": "float16"}, None),
        ("gpu", 3, {"z": "float8_e4m3fn"}, "it takes float16, bfloat16 and float32, and not float8_e4m3fn"),
        ("gpu", 3, {"C": "float8_e4m3fn"}, "it takes float16, bfloat16 and float32, and not float8_e4m3fn"),
    ],
)
def test_what_triton_takes_and_what_not(backend, states, dtypes, reason):
    arguments = abstract_arguments(1, 8, 4, states, "float32")
    changed = {name: jax.ShapeDtypeStruct(arguments[name].shape, dtype) for name, dtype in dtypes.items()}
    with compile_for(backend):
        assert unsupported_reason("pallas_triton", **arguments | changed) == reason


class OldTpu:
    platform, device_kind = "tpu", "TPU v4 lite"


@pytest.mark.parametrize(("size", "runs"), [((64, 32), True), ((640, 256), True), ((5120, 256), False)])
def test_old_tpus_take_what_fits_into_their_memory(monkeypatch, size, runs):
    monkeypatch.setattr(jax, "devices", lambda: [OldTpu()])
    arguments = abstract_arguments(1, 2048, *size, "bfloat16")
    with compile_for("tpu"):
        reason = unsupported_reason("pallas_mosaic_tpu", **arguments)
    assert (reason is None) == runs


AHEAD_OF_TIME = """
import sys
import jax, numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
sys.path[:0] = ["tests", "tests/ops"]
from test_kernel_lowering import abstract_arguments, forward_and_backward
from jaxmamba3d.ops.backend import compile_for

chip, *shape = sys.argv[1].split()
topology = topologies.get_topology_desc(platform="tpu", topology_name=chip)
place = NamedSharding(Mesh(np.array(topology.devices[:1]), ("x",)), PartitionSpec())
arguments = abstract_arguments(*map(int, shape), sys.argv[2], place)
with compile_for("tpu"), jax.default_matmul_precision("highest"):
    function = jax.jit(lambda a, y, h: forward_and_backward("pallas_mosaic_tpu", False, a, y, h))
    memory = function.lower(arguments, arguments["u"], arguments["h0"]).compile().memory_analysis()
print("temporaries MB", memory.temp_size_in_bytes / 2**20)
"""


@pytest.mark.aot
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(2, 2097152, 64, 32), (2, 64, 640, 256)], ids=str)
@pytest.mark.parametrize("chip", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_it_compiles_for_a_tpu(chip, shape, dtype, record_property):
    """pytest -m aot."""
    *_, megabytes = printed_by(AHEAD_OF_TIME, " ".join(map(str, (chip, *shape))), dtype)
    megabytes = float(megabytes)
    record_property("temporaries MB", megabytes)
    print(f"{chip} {shape} {dtype}: temporaries {megabytes:.0f} MB")  # noqa: T201
    # Less than one of the sequences, and far less than the 34 GB of all states.
    assert megabytes * 2**20 < shape[0] * shape[1] * shape[2] * 4 + 2**24
