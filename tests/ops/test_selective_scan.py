"""One contract for every implementation of the selective scan, against the float32 reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_data import golden_arrays
from scan_contract import (
    OPTIONAL,
    TESTED,
    assert_close_to_reference,
    assert_like_reference,
    random_arguments,
    value_and_gradients,
)
from tolerances import assert_close, rounding

from jaxmamba3d.checks import UnsupportedError
from jaxmamba3d.config import SCAN_IMPLEMENTATIONS
from jaxmamba3d.ops.selective_scan import IMPLEMENTATIONS, blocks, selective_scan, unsupported_reason
from jaxmamba3d.ops.selective_scan.blocks import override_blocks
from jaxmamba3d.ops.selective_scan.chunking import LONGEST, chunk_length
from jaxmamba3d.ops.selective_scan.xla import SequentialScan

XLA = [name for name in TESTED if name.startswith("xla")]

SHAPES = {
    "one token": (1, 1, 4, 3),
    "odd everything": (2, 53, 5, 7),
    "one state": (2, 40, 3, 1),
    "widest state": (1, 33, 8, 256),
    "whole chunks": (2, 2 * LONGEST, 6, 4),
    "padded chunks": (1, 523, 5, 4),
    "several tiles of channels": (1, 20, 130, 3),
    "states in several tiles": (2, 9, 16, 256),
    "states in parts": (1, 37, 18, 40),
    "rows of four tokens": (1, 45, 20, 100),
}


@pytest.mark.parametrize("implementation", TESTED)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_values_and_gradients(implementation, shape, reverse):
    tolerance = rounding("float32", shape[1])
    arguments = random_arguments(*shape)
    assert_like_reference(arguments, implementation, tolerance, delta_softplus=True, reverse=reverse)


@pytest.mark.parametrize("implementation", ["xla_sequential", "xla_associative"])
@pytest.mark.parametrize("reverse", [False, True])
def test_states_that_hardly_decay_do_not_drift(implementation, reverse):
    """As products of many decays near 1 do, each of which float32 rounds down."""
    arguments = random_arguments(1, 5000, 3, 4)
    arguments |= {"A": arguments["A"] / 20, "delta_bias": arguments["delta_bias"] - 5}
    assert_like_reference(arguments, implementation, 1e-5, delta_softplus=True, reverse=reverse)


def test_lists_of_numbers_are_arrays():
    arguments = random_arguments(1, 3, 2, 2)
    lists = {name: array.tolist() for name, array in arguments.items()}
    np.testing.assert_array_equal(selective_scan(**lists), selective_scan(**arguments))


def test_flags_may_be_numpys():
    arguments = random_arguments(1, 3, 2, 2)
    flags = {"delta_softplus": True, "reverse": True, "return_last_state": True}
    found = selective_scan(**arguments, **{name: np.bool_(flag) for name, flag in flags.items()})
    for one, other in zip(found, selective_scan(**arguments, **flags), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("implementation", ["pallas_triton", "pallas_mosaic_tpu"])
def test_a_gradient_has_the_blocks_of_its_call(implementation):
    def pull_back(implementation):
        return jax.vjp(lambda a: selective_scan(**a, implementation=implementation), arguments)[1]

    arguments = random_arguments(1, 300, 6, 4)
    with override_blocks(chunk=128):
        found = pull_back(implementation)
    (found,), (expected,) = (pull(arguments["z"]) for pull in (found, pull_back("reference")))
    for name, value in expected.items():
        assert_close(found[name], value, rounding("float32", 300), name)


@pytest.mark.parametrize("implementation", TESTED)
def test_numpy_arrays_are_taken_as_jax_takes_them(implementation):
    arguments = random_arguments(1, 9, 3, 2)
    wide = {name: np.asarray(value, np.float64) for name, value in arguments.items()}
    found, expected = (selective_scan(**given, implementation=implementation) for given in (wide, arguments))
    np.testing.assert_array_equal(found, expected)
    assert unsupported_reason(implementation, **wide) is None


@pytest.mark.parametrize("implementation", TESTED)
@pytest.mark.parametrize("absent", [*((name,) for name in OPTIONAL), OPTIONAL], ids=" ".join)
def test_optional_arguments(implementation, absent):
    arguments = random_arguments(2, 37, 5, 4)
    kept = {name: value for name, value in arguments.items() if name not in absent}
    assert_like_reference(kept, implementation, rounding("float32", 37))


@pytest.mark.slow
@pytest.mark.parametrize("implementation", TESTED)
@pytest.mark.parametrize("seed", range(12))
def test_calls_that_nobody_chose(implementation, seed):
    rng = np.random.default_rng(seed)
    batch, length, channels, states = (int(2 ** rng.uniform(0, power)) for power in (2, 9, 6, 8))
    dtype = rng.choice(["float32", "bfloat16"])
    arguments = random_arguments(batch, length, channels, states, dtype, seed)
    for name in OPTIONAL:
        if rng.random() < 0.4:
            del arguments[name]
    options = {name: bool(rng.random() < 0.5) for name in ("reverse", "delta_softplus")}
    assert_like_reference(arguments, implementation, rounding(dtype, max(length, states)), **options)


@pytest.mark.parametrize("implementation", TESTED)
def test_64_bits_change_nothing(implementation):
    arguments = random_arguments(2, 37, 5, 4)
    expected = value_and_gradients(arguments, "reference")
    with jax.enable_x64(True):
        if implementation == "pallas_triton" and jax.default_backend() == "cpu":
            with pytest.raises(UnsupportedError, match="interpreted, it needs jax_enable_x64 unset"):
                selective_scan(**arguments, implementation=implementation)
            return
        found = value_and_gradients(arguments, implementation)
    assert_close_to_reference(found, expected, implementation, rounding("float32", 37))


@pytest.mark.parametrize("implementation", ["reference", *TESTED])
def test_float64_is_computed_in_float32_or_refused(implementation):
    with jax.enable_x64(True):
        arguments = random_arguments(1, 9, 3, 2, dtype="float64")
        if "pallas" in implementation:
            with pytest.raises(UnsupportedError, match=r"and not float64|jax_enable_x64 unset"):
                selective_scan(**arguments, implementation=implementation)
            return
        found = value_and_gradients(arguments, implementation)
        for name, array in found.items():
            like = arguments.get(name.removeprefix("gradient of "), arguments["u"])
            assert array.dtype == (jnp.float32 if name == "last_state" else like.dtype), name
    rounded = {name: value.astype(jnp.float32) for name, value in arguments.items()}
    for name, value in value_and_gradients(rounded, "reference").items():
        assert_close(found[name], value, rounding("float32", 9), name)


@pytest.mark.parametrize("implementation", TESTED)
@pytest.mark.parametrize("reverse", [False, True])
def test_bfloat16_inputs_keep_a_float32_state(implementation, reverse):
    arguments = random_arguments(2, 300, 5, 4, dtype="bfloat16")
    options = {"delta_softplus": True, "reverse": reverse}
    found = value_and_gradients(arguments, implementation, **options)
    assert found["y"].dtype == jnp.bfloat16
    assert found["last_state"].dtype == jnp.float32
    exact = {name: value.astype(jnp.float32) for name, value in arguments.items()}
    expected = value_and_gradients(exact, "reference", **options)
    assert_close(found["last_state"], expected["last_state"], rounding("float32", 300), "last state")
    assert_close(found["y"], expected["y"], rounding("bfloat16", 1) / 4, "y, rounded once")
    rounded = value_and_gradients(arguments, "reference", **options)
    assert_close_to_reference(found, rounded, implementation, rounding("bfloat16", 1))


@pytest.mark.parametrize("implementation", TESTED)
def test_reverse_is_flip_scan_flip(implementation):
    arguments = random_arguments(2, 523, 5, 4)
    flipped = {k: v[:, ::-1] if k in ("u", "delta", "B", "C", "z") else v for k, v in arguments.items()}
    scan = functools.partial(selective_scan, implementation=implementation, return_last_state=True)
    y, last = scan(**arguments, delta_softplus=True, reverse=True)
    y_flipped, last_flipped = scan(**flipped, delta_softplus=True)
    assert_close(y, y_flipped[:, ::-1], rounding("float32", 1))
    assert_close(last, last_flipped, rounding("float32", 1))


@pytest.mark.parametrize("implementation", TESTED)
def test_state_carries_over_a_cut(implementation):
    arguments = random_arguments(1, 600, 5, 4)
    scan = functools.partial(selective_scan, implementation=implementation, return_last_state=True)
    whole, last = scan(**arguments)

    def part(start, stop, h0):
        tokens = {k: arguments[k][:, start:stop] for k in ("u", "delta", "B", "C", "z")}
        return scan(**(arguments | tokens | {"h0": h0}))

    first, h = part(0, 251, arguments["h0"])
    second, h = part(251, 600, h)
    assert_close(jnp.concatenate([first, second], 1), whole, rounding("float32", 600))
    assert_close(h, last, rounding("float32", 600))


@pytest.mark.parametrize("implementation", TESTED)
@pytest.mark.parametrize("mapped", [("u", "B"), ("u", "A", "delta_bias"), ("D",)], ids=" ".join)
def test_vmap(implementation, mapped):
    arguments = random_arguments(2, 40, 5, 4)
    stacked = {k: jnp.stack([v, v - 0.1, v - 0.2]) if k in mapped else v for k, v in arguments.items()}
    axes = ({k: 0 if k in mapped else None for k in arguments},)
    found = jax.vmap(functools.partial(value_and_gradients, implementation=implementation), axes)(stacked)
    for i in range(3):
        one = {k: v[i] if k in mapped else v for k, v in stacked.items()}
        for name, value in value_and_gradients(one, "reference").items():
            assert_close(found[name][i], value, rounding("float32", 40), name)


@pytest.mark.parametrize("implementation", [name for name in TESTED if "pallas" in name])
def test_kernels_run_once_for_parameters_of_each_mapped_call(implementation):
    """Also where two axes are mapped, one of them with parameters of its own."""
    arguments = {k: v for k, v in random_arguments(2, 9, 3, 2).items() if k not in OPTIONAL}
    u = jnp.stack([arguments["u"] * k for k in (1.0, 2.0, 3.0, 4.0)]).reshape(2, 2, 2, 9, 3)
    A = jnp.stack([arguments["A"], 2 * arguments["A"]])

    def one(u, A):
        return selective_scan(**arguments | {"u": u, "A": A}, implementation=implementation)

    every = jax.vmap(jax.vmap(one, (0, 0)), (0, None))
    jaxpr, single = (str(jax.make_jaxpr(f)(*x)) for f, x in ((every, (u, A)), (one, (u[0, 0], A[0]))))
    assert jaxpr.count("pallas_call") == single.count("pallas_call") > 0
    y = every(u, A)
    for i in range(2):
        for j in range(2):
            expected = selective_scan(**arguments | {"u": u[i, j], "A": A[j]}, implementation="reference")
            assert_close(y[i, j], expected, rounding("float32", 9))


@pytest.mark.parametrize("implementation", TESTED)
def test_gradients_of_several_losses(implementation, monkeypatch):
    """Also where the backward pass alone is mapped, and its larger batch would be cut into other chunks."""
    monkeypatch.setattr(blocks, "PARALLEL_TILES", 2)
    arguments = random_arguments(1, 100, 4, 3)
    assert blocks.triton_chunk(1, 100, 4) != blocks.triton_chunk(2, 100, 4)
    weights = jnp.asarray(np.random.default_rng(2).standard_normal((2, 1, 100, 4)), jnp.float32)

    def pull_back(implementation):
        return jax.vjp(lambda a: selective_scan(**a, implementation=implementation), arguments)[1]

    (found,) = jax.vmap(pull_back(implementation))(weights)
    (expected,) = jax.vmap(pull_back("reference"))(weights)
    for name, value in expected.items():
        assert_close(found[name], value, rounding("float32", 100), name)


@pytest.mark.parametrize(
    ("implementation", "shape", "blocks"),
    [
        ("xla_sequential", (1, 8, 256, 16), {}),
        ("pallas_triton", (1, 70, 40, 3), {"chunk": 32, "run": 3, "groups": 3}),
    ],
)
def test_gradients_of_bfloat16_weights_are_rounded_once(implementation, shape, blocks):
    """B and C serve all tiles of channels, u both the state and the direct path."""
    arguments = random_arguments(*shape, dtype="bfloat16")
    assert SequentialScan.channel_tile(256, 16) < 256
    exact = {name: value.astype(jnp.float32) for name, value in arguments.items()}

    def gradients(arguments, implementation):
        def loss(arguments):
            return jnp.sum(selective_scan(**arguments, implementation=implementation).astype(jnp.float32))

        with override_blocks(**blocks):
            return jax.grad(loss)(arguments)

    found, expected = gradients(arguments, implementation), gradients(exact, "reference")
    for name in ("u", "B", "C"):
        rounded = np.asarray(found[name], np.float32)
        assert np.all(np.abs(rounded - expected[name]) <= 2.0**-8 * np.abs(expected[name]) + 1e-5), name
        # But for those that float32's own rounding moves over a border.
        assert np.mean(found[name] == expected[name].astype(jnp.bfloat16)) > 0.97, name


@pytest.mark.parametrize("implementation", ["reference", *TESTED])
@pytest.mark.parametrize("recording", ["full", "minimal"])
def test_equals_mamba_ssm(implementation, recording):
    """Outputs and all gradients that mamba_ssm's selective_scan_ref gave, in its [B, D, L] order."""
    recorded = golden_arrays(f"networks/public_selective_scan_{recording}_io.npz")
    sequences = ("u", "delta", "B", "C", "z")
    names = [k for k in (*sequences, "A", "D", "delta_bias") if k in recorded]

    def ours(name, value):
        return np.swapaxes(value, 1, 2) if name in sequences else value

    arguments = {k: jnp.asarray(ours(k, recorded[k])) for k in names}
    softplus = bool(recorded.get("delta_softplus", False))

    @jax.jit
    def scan(arguments):
        return selective_scan(
            **arguments, delta_softplus=softplus, return_last_state=True, implementation=implementation
        )

    (y, last), pull_back = jax.vjp(scan, arguments)
    assert_close(y, np.swapaxes(recorded["out"], 1, 2), 3e-6, "out")
    assert_close(last, recorded["last_state"], 3e-6, "last state")

    weights, weights_of_last = jnp.asarray(np.swapaxes(recorded["w"], 1, 2)), jnp.asarray(recorded["w_last"])
    for prefix, of_last in (("grad", 0 * weights_of_last), ("grad_with_last", weights_of_last)):
        (gradients,) = pull_back((weights, of_last))
        largest = max(np.abs(recorded[f"{prefix}/{k}"]).max() for k in names)
        for k in names:
            expected = ours(k, recorded[f"{prefix}/{k}"])
            difference = np.abs(np.asarray(gradients[k]) - expected).max()
            assert difference <= 1e-5 * np.abs(expected).max() + 2e-6 * largest, f"{prefix}/{k}: {difference}"


@pytest.mark.parametrize("implementation", TESTED)
def test_gradients_of_bfloat16_parameters_are_summed_in_float32(implementation):
    """A bfloat16 sum of so many equal terms would stop growing."""
    length = 2**14
    arguments = random_arguments(1, length, 2, 1) | {"u": jnp.ones((1, length, 2))}
    del arguments["z"]

    def total(D):
        return jnp.sum(selective_scan(**(arguments | {"D": D}), implementation=implementation))

    np.testing.assert_array_equal(jax.grad(total)(jnp.ones(2, jnp.bfloat16)), length)


def test_the_config_knows_the_implementations():
    assert set(SCAN_IMPLEMENTATIONS) == set(IMPLEMENTATIONS)


@pytest.mark.parametrize("implementation", XLA)
def test_no_full_state_tensor(implementation):
    """Temporaries of forward and backward stay far below the [B, L, D, N] states."""
    length, channels, state = 2**16, 16, 16
    arguments = {k: v for k, v in random_arguments(1, 8, channels, state).items() if k not in OPTIONAL}
    shapes = {
        k: jax.ShapeDtypeStruct((1, length, *v.shape[2:]) if v.ndim == 3 else v.shape, v.dtype)
        for k, v in arguments.items()
    }
    gradient = jax.grad(lambda a: jnp.sum(selective_scan(**a, implementation=implementation) ** 2))
    memory = jax.jit(gradient).lower(shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.4 * (length * channels * state * 4)


@pytest.mark.parametrize("backward", [False, True])
def test_channels_that_are_walked_in_tiles_are_not_copied(backward):
    """Beside the states at chunk borders and of a chunk, nothing grows with the sequence."""
    length, channels, state = 2**16, 128, 64
    assert SequentialScan.channel_tile(channels, state) < channels
    arguments = {k: v for k, v in random_arguments(1, 8, channels, state).items() if k not in OPTIONAL}
    shapes = {
        k: jax.ShapeDtypeStruct((1, length, *v.shape[2:]) if v.ndim == 3 else v.shape, v.dtype)
        for k, v in arguments.items()
    }

    def run(arguments, g):
        y, vjp = jax.vjp(lambda a: selective_scan(**a, implementation="xla_sequential"), arguments)
        return vjp(g) if backward else y

    memory = jax.jit(run).lower(shapes, shapes["u"]).compile().memory_analysis()
    of_a_state = channels * state * 4
    assert memory.temp_size_in_bytes < (length // 128 + 2 * 256) * of_a_state


@pytest.mark.parametrize("implementation", ["reference", "xla_sequential", "xla_associative"])
def test_the_same_call_is_compiled_once(implementation, caplog):
    """Also where nothing around it is jitted, as in a notebook."""
    arguments = random_arguments(1, 10, 3, 2)

    def gradient():
        return jax.grad(lambda a: jnp.sum(selective_scan(**a, implementation=implementation)))(arguments)

    jax.clear_caches()
    for expected in (True, False):
        caplog.clear()
        with jax.log_compiles(), caplog.at_level("WARNING"):
            gradient()
        assert any("XLA compilation of jit(scan)" in message for message in caplog.messages) == expected


@pytest.mark.parametrize("length", [1, 100, 256, 512, 89600, 2**21, 1000003, 128 * 9 * 7, 128 * 1009])
def test_chunks_divide_where_they_can_or_else_pad_least(length):
    padding = {chunk: -length % chunk for chunk in range(128, 257)}
    least = [chunk for chunk, tokens in padding.items() if tokens == min(padding.values())]
    assert chunk_length(length) == (length if length <= LONGEST else max(least))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"A": jnp.zeros((6, 4))}, r"A must have shape \[D, N\] = \[5, 4\], got \[6, 4\]"),
        ({"B": jnp.zeros((2, 8, 3))}, r"B must have shape \[B, L, N\] = \[2, 8, 4\], got \[2, 8, 3\]"),
        ({"h0": jnp.zeros((2, 4, 5))}, r"h0 must have shape \[B, D, N\] = \[2, 5, 4\]"),
        ({"u": jnp.zeros((8, 5))}, r"u must be \[B, L, D\], got shape \[8, 5\]"),
        ({"u": jnp.zeros((2, 0, 5))}, "u must be at least one token long"),
        ({"u": jnp.zeros((0, 8, 5))}, "u must be not empty"),
        ({"u": jnp.zeros((2, 8, 0))}, "u must be not empty"),
        ({"A": jnp.zeros((5, 0))}, "A must be of at least one state"),
        ({"z": jnp.zeros((2, 8, 5), jnp.int32)}, "z must be floating, got int32"),
        ({"reverse": "False"}, "reverse must be True or False, known when the call is traced, got str"),
        ({"delta_softplus": jnp.array(True)}, "delta_softplus must be True or False, .*, got Array"),
        ({"return_last_state": "no"}, "return_last_state must be True or False, .*, got str"),
        ({"implementation": "fast"}, "implementation must be one of reference, .*got 'fast'"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        selective_scan(**(random_arguments(2, 8, 5, 4) | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"A": jnp.ones(7)}, r"A must be \[D, N\], got shape \[7\]"),
        ({"B": jnp.zeros((2, 8, 3))}, r"B must have shape \[B, L, N\]"),
        ({"u": None}, "u must be an array"),
        ({"reverse": True}, "an array's name must be one of u, delta"),
    ],
)
def test_what_is_asked_for_a_reason_is_checked_like_a_call(change, message):
    with pytest.raises(ValueError, match=message):
        unsupported_reason("xla_sequential", **(random_arguments(2, 8, 5, 4) | change))
    lists = {name: array.tolist() for name, array in random_arguments(2, 8, 5, 4).items()}
    assert unsupported_reason("xla_sequential", **lists) is None
    with pytest.raises(ValueError, match=r"implementation must be one of reference, .*got 'fast'"):
        unsupported_reason("fast", **lists)
