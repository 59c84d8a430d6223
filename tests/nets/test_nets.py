"""The networks against the authors' PyTorch ones: outputs, skips, gradients, counts, initialisation."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_data import GOLDEN, golden_arrays
from over_devices import FORMS, assert_the_gradient_of_one_device, needs_two_devices
from real_data import ROOT
from safetensors.numpy import load_file
from tolerances import assert_close

from jaxmamba3d.losses import segmentation_loss
from jaxmamba3d.nets import NetConfig, abstract_net, build_net, load_official_weights, to_official_weights
from jaxmamba3d.nn import Conv3D, MambaBlock, ResidualBlock, Upsample3D
from jaxmamba3d.ops.backend import compile_for

OFFICIAL = {
    "segmamba": "SegMamba",
    "bisegmamba": "PanSegMamba",
    "segmambaskip": "SegMambaSkip",
    "multisegmamba": "MultiSegMamba",
}
SMALL = NetConfig(
    name="resunet",
    in_channels=1,
    num_classes=3,
    features=(8, 16, 32),
    kernel_sizes=((3, 3, 3),) * 3,
    strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)),
    blocks_per_stage=(2, 2, 2),
    decoder_blocks_per_stage=(2, 2),
)
TINY = dataclasses.replace(
    SMALL,
    features=(4, 8),
    kernel_sizes=((3, 3, 3),) * 2,
    strides=((1, 1, 1), (2, 2, 2)),
    blocks_per_stage=(1, 1),
    decoder_blocks_per_stage=(1,),
)
FULL = json.loads((GOLDEN / "networks" / "full_configurations.json").read_text())


def recording(name):
    """Folder and file prefix of a network's recording; two of the four are kept beside the tests."""
    for folder in (GOLDEN / "networks", ROOT.parent / "shared" / "golden" / "networks"):
        if (folder / f"public_{OFFICIAL[name]}_io.npz").is_file():
            return folder, f"public_{OFFICIAL[name]}"
    pytest.skip(
        f"the recording of {OFFICIAL[name]} is not here (10 MB for all four, two are in tests/golden)"
    )


def full_config(dataset, name):
    full = FULL[dataset]
    return NetConfig(
        name=name,
        in_channels=full["input_channels"],
        num_classes=full["num_classes"],
        features=full["features"],
        kernel_sizes=full["kernel_sizes"],
        strides=full["strides"],
        blocks_per_stage=full["blocks"],
        decoder_blocks_per_stage=full["decoder_blocks"],
    )


def channels_last(array):
    return np.moveaxis(array, 1, -1)


@pytest.mark.parametrize(
    ("name", "backend"), [*((name, "cpu") for name in OFFICIAL), ("segmambaskip", "tpu")]
)
def test_equals_the_official_network(name, backend):
    """As it is built for TPUs, too, but for the scan."""
    folder, prefix = recording(name)
    io = golden_arrays(folder / f"{prefix}_io.npz")
    scan = "xla_sequential" if backend == "tpu" else None
    net = abstract_net(dataclasses.replace(SMALL, name=name, scan_implementation=scan))
    load_official_weights(net, load_file(folder / f"{prefix}_unique.safetensors"))

    @nnx.jit
    def evaluate(net, x):
        def loss(net, x):
            skips = net.encode(x)
            outputs = net.decode(skips)
            total = sum(jnp.mean(o * channels_last(io[f"w_{i}"])) for i, o in enumerate(outputs))
            return total, (outputs, skips)

        return nnx.value_and_grad(loss, argnums=(0, 1), has_aux=True)(net, x)

    with compile_for(backend):
        (loss, (outputs, skips)), (gradients, input_gradient) = evaluate(net, channels_last(io["input"]))
    assert len(outputs) == 2
    for kind, arrays in (("out", outputs), ("skip", skips)):
        for i, array in enumerate(arrays):
            assert_close(array, channels_last(io[f"{kind}_{i}"]), 1e-5, f"{kind}_{i}")
    assert abs(float(loss) - io["loss"]) < 1e-6
    assert_close(input_gradient, channels_last(io["grad_input"]), 1e-4, "input gradient")

    found = to_official_weights(nnx.merge(nnx.graphdef(net), gradients))
    expected = {key.removeprefix("grad/"): io[key] for key in io if key.startswith("grad/")}
    assert found.keys() == expected.keys()
    largest = max(np.abs(value).max() for value in expected.values())
    for key, value in expected.items():
        difference = np.abs(found[key] - value).max()
        assert difference <= 1e-4 * np.abs(value).max() + 1e-5 * largest, f"gradient of {key}: {difference}"


FIRST, *OTHERS = FULL


@pytest.mark.parametrize("dataset", [FIRST, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
@pytest.mark.parametrize("name", OFFICIAL)
def test_parameter_counts_of_the_paper(dataset, name):
    config = full_config(dataset, name)
    net = abstract_net(config)
    params = jax.tree.leaves(nnx.state(net, nnx.Param))
    assert sum(p.size for p in params) == FULL[dataset]["totals"][OFFICIAL[name]]
    assert len(params) == FULL[dataset]["tensors"][OFFICIAL[name]]


@pytest.mark.parametrize("stages", [3, pytest.param(6, marks=pytest.mark.slow)])
def test_fresh_weights_are_distributed_as_the_official_ones(stages):
    """Every tensor of the upper stages of the full ACDC configuration: names, shapes, mean, spread, range."""
    config = full_config("Dataset027_ACDC", "multisegmamba")
    sizes = ("features", "kernel_sizes", "strides", "blocks_per_stage")
    upper = {field: getattr(config, field)[:stages] for field in sizes}
    decoder_blocks = config.decoder_blocks_per_stage[1 - stages :]
    net = build_net(
        dataclasses.replace(config, **upper, decoder_blocks_per_stage=decoder_blocks), rngs=nnx.Rngs(0)
    )

    def in_the_full_net(name):
        """The decoder's stages are counted from the deepest one."""
        deeper = len(config.features) - stages
        return re.sub(r"(?<=^decoder\.)(\w+)\.(\d+)", lambda m: f"{m[1]}.{int(m[2]) + deeper}", name)

    weights = {in_the_full_net(name): value for name, value in to_official_weights(net).items()}
    shapes = FULL["Dataset027_ACDC"]["shapes"]["MultiSegMamba"]
    assert {name: list(value.shape) for name, value in weights.items()} == {
        name: shapes[name] for name in weights
    }
    assert stages < len(config.features) or weights.keys() == shapes.keys()
    recorded = json.loads((GOLDEN / "networks" / "init_stats.json").read_text())["MultiSegMamba"]
    assert weights.keys() <= recorded.keys()
    for name, value in weights.items():
        mean, std, low, high = recorded[name]
        value = value.astype(np.float64)
        # Means and deviations of n samples, each of the two sets with its own chance: 6 sigma of both.
        chance = 6 * np.sqrt(2 / value.size)
        assert abs(value.mean() - mean) <= chance * std + 1e-6, name
        assert abs(value.std() - std) <= chance * std + 1e-6, name
        reach = max(abs(low), abs(high))
        # Normal tensors reach further the larger they are, uniform ones end at their bound.
        assert np.abs(value).max() <= 1.5 * reach + 1e-6, name
        if value.size > 1000:
            assert np.abs(value).max() >= reach / 1.5, name


def test_resunet_is_the_same_net_without_mixers():
    plain = to_official_weights(build_net(SMALL, rngs=nnx.Rngs(0)))
    mamba = to_official_weights(build_net(dataclasses.replace(SMALL, name="segmamba"), rngs=nnx.Rngs(0)))
    assert plain.keys() == {name for name in mamba if "mamba" not in name}


@pytest.fixture(scope="module")
def trained():
    """A net of recorded weights (fresh ones hold zeros), its config, and an image."""
    config = dataclasses.replace(SMALL, name="segmambaskip")
    net = abstract_net(config)
    load_official_weights(net, load_file(GOLDEN / "networks" / "public_SegMambaSkip_unique.safetensors"))
    return net, config, np.random.default_rng(0).standard_normal((1, 8, 8, 8, 1)).astype(np.float32)


def other_net(net, config, **changes):
    """A net of a changed config with the weights of another."""
    changed = abstract_net(dataclasses.replace(config, **changes))
    nnx.update(changed, nnx.state(net))
    return changed


def test_without_deep_supervision_the_first_output_comes_alone(trained):
    net, config, x = trained
    outputs = nnx.jit(lambda net: net(x))(net)
    alone = nnx.jit(lambda net: net(x))(other_net(net, config, deep_supervision=False))
    assert [o.shape for o in outputs] == [(1, 8, 8, 8, 3), (1, 4, 4, 4, 3)]
    assert_close(alone, outputs[0], 1e-6)


@pytest.mark.slow
def test_remat_changes_no_number():
    config = dataclasses.replace(TINY, name="bisegmamba")
    net = build_net(config, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((1, 4, 4, 4, 1)).astype(np.float32)

    def gradients(net):
        return jax.tree.leaves(nnx.jit(nnx.grad(lambda net: jnp.sum(net(x)[0] ** 2)))(net))

    plain, remat = gradients(net), gradients(other_net(net, config, remat=True))
    largest = max(float(jnp.max(jnp.abs(g))) for g in plain)
    for one, other in zip(plain, remat, strict=True):
        assert float(jnp.max(jnp.abs(one - other))) <= 1e-5 * largest


@pytest.mark.parametrize("name", OFFICIAL)
def test_every_block_has_the_options_of_its_net(name):
    options = {"remat": True, "scan_implementation": "reference", "dtype": "bfloat16"}
    net = abstract_net(dataclasses.replace(TINY, name=name, **options))
    blocks = [node for _, node in nnx.iter_graph(net) if isinstance(node, MambaBlock)]
    assert {block.remat for block in blocks} == {True}
    assert {block.mamba.scan_implementation for block in blocks} == {"reference"}
    assert {layer.dtype for block in blocks for layer in (block.mamba, block.head)} == {"bfloat16"}
    convolutions = [x for _, x in nnx.iter_graph(net) if isinstance(x, Conv3D | Upsample3D | ResidualBlock)]
    assert {layer.dtype for layer in convolutions} == {jnp.dtype("bfloat16")}


@needs_two_devices
@pytest.mark.parametrize("form", FORMS)
def test_gradients_over_devices(form):
    graphdef, params = nnx.split(build_net(dataclasses.replace(TINY, name="segmamba"), rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 4, 4, 4, 1)).astype(np.float32)

    def loss(params, x):
        labels = jnp.zeros(x.shape[:-1], int) + jnp.arange(4) % 3
        return segmentation_loss(nnx.merge(graphdef, params)(x), labels, batch_dice=False) * x.shape[0]

    assert_the_gradient_of_one_device(loss, params, x, form, 1e-4)


def test_bfloat16_stays_near_float32(trained):
    net, config, x = trained
    exact = nnx.jit(lambda net: net(x)[0])(net)
    half_net = other_net(net, config, dtype="bfloat16")
    half = nnx.jit(lambda net: net(x)[0])(half_net)
    assert half.dtype == jnp.bfloat16
    assert {p.dtype for p in jax.tree.leaves(nnx.state(half_net, nnx.Param))} == {jnp.dtype("float32")}
    assert_close(half, exact, 0.1)


@pytest.mark.parametrize("name", OFFICIAL)
def test_where_numbers_are_64_bits_wide_all_is_float32(name):
    with jax.enable_x64(True):
        net = nnx.eval_shape(lambda: build_net(dataclasses.replace(TINY, name=name), rngs=nnx.Rngs(0)))
        outputs = nnx.eval_shape(lambda net, x: net(x), net, jnp.zeros((1, 4, 4, 4, 1), jnp.float32))
    assert {x.dtype for x in (*jax.tree.leaves(nnx.state(net)), *outputs)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_abstract_net_has_the_shapes_of_the_real_one(name):
    """And weights loaded into one of them leave the next abstract."""
    config = dataclasses.replace(TINY, name=name)
    real = build_net(config, rngs=nnx.Rngs(0))
    for _ in range(2):
        net = abstract_net(config)
        assert nnx.graphdef(net) == nnx.graphdef(real)
        for shape, array in zip(*(jax.tree.leaves(nnx.state(x)) for x in (net, real)), strict=True):
            assert isinstance(shape, jax.ShapeDtypeStruct)
            assert (shape.shape, shape.dtype) == (array.shape, array.dtype)
        load_official_weights(net, to_official_weights(real))


def test_sizes_that_do_not_divide_are_named():
    net = abstract_net(SMALL)
    with pytest.raises(ValueError, match=r"size of x along Y must be divisible by 4, .* got 10"):
        net(jnp.zeros((1, 8, 10, 8, 1)))
    with pytest.raises(ValueError, match=r"size of x along Z must be divisible by 4, .* got 6"):
        net(jnp.zeros((1, 8, 8, 6, 1)))
    with pytest.raises(ValueError, match=r"x must have shape \[B, X, Y, Z, C\]"):
        net(jnp.zeros((1, 8, 8, 8, 2)))
    with pytest.raises(ValueError, match=r"x must be not empty, got shape \[0, 8, 8, 8, 1\]"):
        net(jnp.zeros((0, 8, 8, 8, 1)))


class TestLoading:
    @pytest.fixture
    def net(self):
        net = abstract_net(dataclasses.replace(SMALL, name="segmambaskip"))
        load_official_weights(net, load_file(GOLDEN / "networks" / "public_SegMambaSkip_unique.safetensors"))
        return net

    @pytest.fixture
    def weights(self):
        return load_file(GOLDEN / "networks" / "public_SegMambaSkip_unique.safetensors")

    def test_round_trip(self, net, weights):
        found = to_official_weights(net)
        assert found.keys() == weights.keys()
        for name, value in weights.items():
            np.testing.assert_array_equal(found[name], value)

    def test_duplicates_are_accepted_and_compared(self, net, weights):
        name = "encoder.stages.1.blocks.0.conv1.conv.weight"
        alias = "decoder.encoder.stages.1.blocks.0.conv1.all_modules.0.weight"
        load_official_weights(net, weights | {alias: weights[name]})
        with pytest.raises(ValueError, match=rf"{alias} must be equal to its duplicate {name}"):
            load_official_weights(net, weights | {alias: weights[name] + 1})
        broken = np.full_like(weights[name], np.nan)
        with pytest.raises(ValueError, match=rf"must be finite, got 1 not finite \({name}\)"):
            load_official_weights(net, weights | {name: broken, alias: broken})

    def test_the_parameters_keep_their_dtype(self, net, weights):
        load_official_weights(net, {name: value.astype(np.float16) for name, value in weights.items()})
        assert {x.dtype for x in jax.tree.leaves(nnx.state(net))} == {jnp.dtype("float32")}

    def test_missing_surplus_and_misshapen_are_named(self, net, weights):
        name = "decoder.seg_layers.1.bias"
        before = to_official_weights(net)
        with pytest.raises(
            ValueError, match=rf"the {len(weights)} tensors .* got 1 missing \({name}\) and no surplus"
        ):
            load_official_weights(net, {k: v for k, v in weights.items() if k != name})
        with pytest.raises(ValueError, match=r"got no missing and 1 surplus \(decoder.seg_layers.2.bias\)"):
            load_official_weights(net, weights | {"decoder.seg_layers.2.bias": weights[name]})
        with pytest.raises(ValueError, match=r"decoder.seg_layers.1.bias \[4\] instead of \[3\]"):
            load_official_weights(net, weights | {name: np.zeros(4, np.float32)})
        for value in (np.nan, np.inf):
            with pytest.raises(ValueError, match=rf"must be finite, got 1 not finite \({name}\)"):
                load_official_weights(net, weights | {name: np.full(3, value, np.float32)})
        for key, value in to_official_weights(net).items():
            np.testing.assert_array_equal(value, before[key])
