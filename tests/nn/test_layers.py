"""The layers alone against the authors' PyTorch ones: outputs and all gradients."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_data import GOLDEN, golden_arrays
from over_devices import FORMS, assert_the_gradient_of_one_device, needs_two_devices
from safetensors.numpy import load_file
from tolerances import assert_close

from jaxmamba3d.nets import load_official_weights, to_official_weights
from jaxmamba3d.nets.unet3d import TokenMixer
from jaxmamba3d.nn import (
    BidirectionalMambaBlock,
    Conv3D,
    InstanceNorm,
    Mamba,
    MambaBlock,
    MultiOrderMambaBlock,
    ResidualBlock,
    Upsample3D,
)
from jaxmamba3d.nn.norm import LayerNorm
from jaxmamba3d.ops.backend import compile_for
from jaxmamba3d.ops.scan_orders import to_tokens, to_volume


def mixer(block):
    return lambda: TokenMixer(block(8, d_state=8, rngs=nnx.Rngs(0)), 8, rngs=nnx.Rngs(0))


def residual(out_features, strides):
    # Strides and kernel as in the recordings: input [2, 4, 4, 4, 6] with the channels first.
    return lambda: ResidualBlock(4, out_features, (3, 3, 3), strides, rngs=nnx.Rngs(0))


LAYERS = {
    "Mamba": lambda: Mamba(8, rngs=nnx.Rngs(0)),
    "MambaTrans": lambda: MambaBlock(8, d_state=8, rngs=nnx.Rngs(0)),
    "MambaTrans_small": lambda: MambaBlock(8, d_state=8, rngs=nnx.Rngs(0)),
    "MambaTrans_c72_Seg": lambda: MambaBlock(72, d_state=72, rngs=nnx.Rngs(0)),
    "MambaTrans_c72_Multi": lambda: MambaBlock(72, d_state=64, rngs=nnx.Rngs(0)),
    "PanMambaTrans": lambda: BidirectionalMambaBlock(8, d_state=8, rngs=nnx.Rngs(0)),
    "PanMambaTrans_small": lambda: BidirectionalMambaBlock(8, d_state=8, rngs=nnx.Rngs(0)),
    "MultiMambaTrans": lambda: MultiOrderMambaBlock(8, d_state=8, rngs=nnx.Rngs(0)),
    "MambaLayer_Seg": mixer(MambaBlock),
    "MambaLayer_Seg_small": mixer(MambaBlock),
    "MambaLayer_Pan": mixer(BidirectionalMambaBlock),
    "BasicBlockD_identity": residual(4, (1, 1, 1)),
    "BasicBlockD_project": residual(6, (1, 1, 1)),
    "BasicBlockD_stride": residual(4, (2, 2, 2)),
    "BasicBlockD_stride_project": residual(6, (2, 2, 2)),
    "BasicBlockD_stride_project_small": residual(6, (2, 2, 2)),
}


@pytest.mark.parametrize(
    ("name", "backend"),
    [(name, "cpu") for name in LAYERS] + [(name, "tpu") for name in LAYERS if "Block" in name],
)
def test_equals_the_official_layer(name, backend):
    """Residual blocks in the form for TPUs, too, in which voxels lie side by side."""
    io = golden_arrays(f"networks/public_layer_{name}_io.npz")
    layer = nnx.eval_shape(LAYERS[name])
    load_official_weights(layer, load_file(GOLDEN / "networks" / f"public_layer_{name}.safetensors"))

    def ours(array):
        return np.moveaxis(array, 1, -1) if array.ndim == 5 else array

    def loss(layer, x):
        y = layer(x)
        return jnp.sum(y * ours(io["w"])), y

    gradient = nnx.jit(nnx.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    with compile_for(backend):
        (_, y), (gradients, input_gradient) = gradient(layer, ours(io["input"]))
    assert_close(y, ours(io["output"]), 3e-6, "output")

    found = to_official_weights(nnx.merge(nnx.graphdef(layer), gradients))
    found["input"] = np.asarray(input_gradient)
    expected = {key.removeprefix("grad/"): io[key] for key in io if key.startswith("grad/")}
    largest = max(np.abs(value).max() for value in expected.values())
    expected["input"] = ours(io["grad_input"])
    assert found.keys() == expected.keys()
    noise = 5e-5 if name.startswith("BasicBlockD") and name.endswith("small") else 2e-6
    for key, value in expected.items():
        difference = np.abs(found[key] - value).max()
        assert difference <= 1e-5 * np.abs(value).max() + noise * largest, f"gradient of {key}: {difference}"


@pytest.mark.parametrize(
    ("make", "channels", "side"),
    [
        (functools.partial(Upsample3D, 4, 6, (1, 2, 1)), 4, 5),
        (functools.partial(Upsample3D, 4, 6, (1, 3, 1)), 4, 4),
        (functools.partial(Upsample3D, 4, 96, (1, 2, 1)), 4, 6),
        (functools.partial(ResidualBlock, 3, 128, (1, 3, 1), (1, 2, 1)), 3, 12),
        (functools.partial(ResidualBlock, 100, 6, (1, 3, 1), (1, 3, 1)), 100, 9),
        (functools.partial(ResidualBlock, 5, 40, (1, 3, 1), (1, 1, 1)), 5, 6),
    ],
)
def test_the_form_for_tpus_is_of_any_size(make, channels, side):
    layer = make(rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 2, side, 2, channels)), jnp.float32)
    with compile_for("tpu"):
        found = layer(x)
    assert_close(found, layer(x), 1e-5)


def test_reverse_block_is_flip_block_flip():
    block = MambaBlock(8, d_state=4, rngs=nnx.Rngs(1))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 19, 8)), jnp.float32)
    assert_close(block(x, reverse=True), block(x[:, ::-1])[:, ::-1], 1e-6)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_block_that_is_run_again_keeps_its_input_alone(reverse):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 19, 8)), jnp.float32)
    plain, again = (MambaBlock(8, d_state=4, remat=remat, rngs=nnx.Rngs(0)) for remat in (False, True))
    y, pull_back = jax.vjp(functools.partial(again, reverse=reverse), x)
    assert_close(y, plain(x, reverse=reverse), 1e-6)
    assert [kept.shape for kept in jax.tree.leaves(pull_back) if kept.ndim == x.ndim] == [x.shape]


def test_axis_orders_can_be_chosen_and_are_checked():
    block = MultiOrderMambaBlock(4, orders=("XYZ", "ZXY"), d_state=4, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 2, 3, 4, 4)), jnp.float32)
    volumes = [
        to_volume(own(to_tokens(x, order)), x.shape[1:4], order)
        for own, order in zip(block.blocks, ("XYZ", "ZXY"), strict=True)
    ]
    assert_close(block(x), sum(volumes) / 2, 1e-6)
    with pytest.raises(ValueError, match="orders must be one of XYZ, XZY, YXZ, ZXY, got 'ZYX'"):
        MultiOrderMambaBlock(4, orders=("ZYX",), rngs=nnx.Rngs(0))
    for orders in ("XYZ", ()):
        with pytest.raises(ValueError, match="orders must be a tuple of at least one order, got"):
            MultiOrderMambaBlock(4, orders=orders, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("make", "shape", "message"),
    [
        (Mamba, (1, 4, 6), r"x must have shape \[B, L, in_features\] = \[any, any, 8\], got \[1, 4, 6\]"),
        (Mamba, (4, 8), r"x must have shape \[B, L, in_features\]"),
        (Mamba, (1, 0, 8), r"x must be not empty, got shape \[1, 0, 8\]"),
        (MambaBlock, (1, 4, 6), r"x must have shape \[B, L, in_features\]"),
        (BidirectionalMambaBlock, (1, 4, 6), r"x must have shape \[B, L, in_features\]"),
        (
            MultiOrderMambaBlock,
            (1, 8, 8),
            r"x must have shape \[B, X, Y, Z, in_features\] = .*, got \[1, 8, 8\]",
        ),
        (MultiOrderMambaBlock, (1, 2, 2, 2, 6), r"x must have shape \[B, X, Y, Z, in_features\]"),
        (functools.partial(Conv3D, out_features=3), (4, 4, 4, 8), r"\[B, X, Y, Z, in_features\] = \[any, "),
        (functools.partial(Upsample3D, out_features=3, size=(2, 2, 2)), (1, 4, 4, 4, 3), "in_features"),
        (functools.partial(ResidualBlock, out_features=3, kernel_size=(3, 3, 3)), (4, 8), r"\[B, X, Y, Z, "),
        (lambda features, rngs: InstanceNorm(features), (4, 4, 4, 8), r"\[B, X, Y, Z, features\]"),
        (lambda features, rngs: InstanceNorm(features), (1, 4, 4, 4, 1), r"\[B, X, Y, Z, features\]"),
        (LayerNorm, (2, 3), r"x must be \[\.\.\., 8\], got shape \[2, 3\]"),
    ],
)
def test_inputs_are_checked(make, shape, message):
    layer = make(8, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=message):
        layer(jnp.ones(shape))


@pytest.mark.parametrize("norm", [LayerNorm(8, rngs=nnx.Rngs(0)), InstanceNorm(8)], ids=["layer", "instance"])
def test_norms_give_the_dtype_that_they_take(norm):
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5, 8))
    exact = norm(x)
    assert exact.dtype == jnp.float32
    rounded = norm(jnp.asarray(x, jnp.bfloat16))
    assert rounded.dtype == jnp.bfloat16
    assert_close(rounded, exact, 2**-7)


def test_an_instance_norm_keeps_its_input_alone():
    x = jnp.ones((2, 3, 4, 5, 8), jnp.bfloat16)
    _, pull_back = jax.vjp(InstanceNorm(8), x)
    kept = [array for array in jax.tree.leaves(pull_back) if array.ndim == x.ndim]
    assert [(array.shape, array.dtype) for array in kept] == [(x.shape, x.dtype)]


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_parameters_are_of_their_dtype_and_results_of_the_layers(dtype):
    options = {"dtype": dtype, "param_dtype": jnp.float16, "rngs": nnx.Rngs(0)}
    block = MambaBlock(8, d_state=4, **options)
    layers = [block, Conv3D(2, 3, **options), Upsample3D(2, 3, (2, 1, 2), **options)]
    for path, param in itertools.chain.from_iterable(map(nnx.iter_graph, layers)):
        if isinstance(param, nnx.Param):
            exact = {"A_log", "D", "norm1", "norm2"} & set(path)
            assert param.dtype == (jnp.float32 if exact else jnp.float16), path
    half = jnp.ones((1, 2, 2, 2, 2), jnp.float16)
    for layer in layers[1:]:
        assert layer(half).dtype == (dtype or jnp.float16)
    assert block.mamba(jnp.ones((1, 4, 8), jnp.float16)).dtype == (dtype or jnp.float16)
    products = [node for _, node in nnx.iter_graph(block) if isinstance(node, nnx.Linear)]
    assert [product.dtype for product in products] == [dtype] * 5


@pytest.mark.parametrize("make", [LayerNorm, lambda features, rngs: InstanceNorm(features), MambaBlock])
def test_whole_numbers_are_not_normalised(make):
    """They would be cut off to whole numbers."""
    layer = make(8, rngs=nnx.Rngs(0))
    shape = (1, 2, 2, 2, 8) if isinstance(layer, InstanceNorm) else (1, 4, 8)
    with pytest.raises(ValueError, match="x must be floating, got int32"):
        layer(jnp.ones(shape, jnp.int32))


@pytest.mark.parametrize(
    ("norm", "axes"),
    [(LayerNorm(40, rngs=nnx.Rngs(0)), -1), (InstanceNorm(40), (1, 2, 3))],
    ids=["layer", "instance"],
)
def test_numbers_far_from_zero_are_normalised_by_their_own_variance(norm, axes):
    """A difference of squares would lose it in rounding."""
    x = np.float32(1000 + np.random.default_rng(0).standard_normal((2, 3, 4, 5, 40)))
    centred = x.astype(np.float64) - x.mean(axes, np.float64, keepdims=True)
    expected = centred / np.sqrt(np.square(centred).mean(axes, keepdims=True) + 1e-5)
    assert_close(norm(jnp.asarray(x)), expected, 1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_state": 0}, "d_state must be greater than 0, got 0"),
        ({"d_state": 2.5}, "d_state must be a whole number, got 2.5"),
        ({"d_conv": 0}, "d_conv must be greater than 0"),
        ({"dt_rank": 0}, "dt_rank must be greater than 0"),
        ({"expand": 0}, "expand must be greater than 0"),
        ({"scan_implementation": "fast"}, "scan_implementation must be one of reference, .*, got 'fast'"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        Mamba(8, rngs=nnx.Rngs(0), **options)


@pytest.mark.parametrize("make", [Mamba, MambaBlock, BidirectionalMambaBlock, MultiOrderMambaBlock])
@pytest.mark.parametrize(
    ("features", "wanted"), [(None, "a whole number"), (2.5, "a whole"), (-1, "greater")]
)
def test_channels_are_checked(make, features, wanted):
    with pytest.raises(ValueError, match=f"in_features must be {wanted}"):
        make(features, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (functools.partial(Conv3D, -3, 5), "in_features must be greater than 0, got -3"),
        (functools.partial(Conv3D, 3, 0), "out_features must be greater than 0, got 0"),
        (functools.partial(Conv3D, 3, 5, 3), "kernel_size must be three sizes, along X, Y, Z, got 3"),
        (functools.partial(Conv3D, 3, 5, (3, 3)), r"kernel_size must be three sizes, .*, got \(3, 3\)"),
        (functools.partial(Conv3D, 3, 5, (3, 2, 3)), r"kernel_size must be of odd sizes, got \(3, 2, 3\)"),
        (functools.partial(Conv3D, 3, 5, (3, 3, 3), (1, 0, 1)), "strides must be greater than 0, got 0"),
        (functools.partial(Upsample3D, 3, 5, (2, 2.0, 2)), "size must be a whole number, got 2.0"),
        (functools.partial(ResidualBlock, 3, 5, (3, 3, 3), (2, 2)), "strides must be three sizes"),
        (lambda rngs: InstanceNorm(0), "features must be greater than 0, got 0"),
    ],
)
def test_sizes_of_layers_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make(rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        (
            (2, 4),
            r"x must have shape \[B, X, Y, Z, in_features / 2\] = \[any, .*, 3\], got \[1, 4, 4, 4, 2\]",
        ),
        ((1, 1, 1, 1), "the number of volumes must be a divisor of 6, in_features, got 4"),
    ],
)
def test_volumes_that_a_block_cannot_join_are_refused(channels, message):
    block = ResidualBlock(6, 4, (3, 3, 3), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=message):
        block(*(jnp.ones((1, 4, 4, 4, n)) for n in channels))


def test_volumes_of_several_sizes_are_not_joined():
    block = ResidualBlock(6, 4, (3, 3, 3), rngs=nnx.Rngs(0))
    with pytest.raises(
        ValueError, match=r"each volume must be of shape \[1, 4, 4, 4, 3\], got \[1, 4, 2, 4, 3\]"
    ):
        block(jnp.ones((1, 4, 4, 4, 3)), jnp.ones((1, 4, 2, 4, 3)))


@pytest.mark.parametrize("out_features", [4, 8])
def test_a_residual_block_computes_in_its_dtype(out_features):
    block = ResidualBlock(8, out_features, (1, 1, 1), dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    with jax.numpy_dtype_promotion("strict"):
        assert block(jnp.ones((1, 2, 2, 2, 8))).dtype == jnp.bfloat16


def test_lists_of_sizes_are_as_good_as_tuples():
    for make, sizes in (
        (functools.partial(Conv3D, 3, 5), {"kernel_size": [3, 3, 3], "strides": [1, 2, 2]}),
        (functools.partial(ResidualBlock, 3, 5), {"kernel_size": [3, 3, 3], "strides": [1, 2, 2]}),
        (functools.partial(MultiOrderMambaBlock, 4), {"orders": ["XYZ", "ZXY"]}),
    ):
        tuples = {name: tuple(value) for name, value in sizes.items()}
        of_lists, of_tuples = (make(**given, rngs=nnx.Rngs(0)) for given in (sizes, tuples))
        assert hash(nnx.graphdef(of_lists)) == hash(nnx.graphdef(of_tuples))


@pytest.mark.parametrize("scan", ["xla_sequential", "pallas_triton"])
def test_orders_in_one_call_are_the_same(scan):
    options = {"orders": ("XYZ", "ZXY"), "d_state": 2, "scan_implementation": scan}
    blocks = [MultiOrderMambaBlock(4, in_one_call=one, **options, rngs=nnx.Rngs(0)) for one in (False, True)]
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 2, 3, 2, 4)), jnp.float32)

    def loss(block, x):
        y = block(x)
        return jnp.sum(y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)), y

    gradient = nnx.jit(nnx.grad(loss, argnums=(0, 1), has_aux=True))
    results = [gradient(block, x) for block in blocks]
    expected, found = (jax.tree.leaves(result) for result in results)
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(b, a, rtol=2e-5, atol=2e-5)


@needs_two_devices
@pytest.mark.parametrize("in_one_call", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_gradients_over_devices(form, in_one_call):
    block = MultiOrderMambaBlock(
        4, orders=("XYZ", "ZXY"), d_state=2, in_one_call=in_one_call, rngs=nnx.Rngs(0)
    )
    graphdef, params = nnx.split(block)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 2, 3, 2, 4)), jnp.float32)

    def loss(params, x):
        return jnp.sum(nnx.merge(graphdef, params)(x) ** 2)

    assert_the_gradient_of_one_device(loss, params, x, form, 1e-5)


@needs_two_devices
@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_packed_blocks_over_devices(form):
    block = ResidualBlock(6, 4, (3, 3, 3), (1, 2, 2), rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(block)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 2, 8, 4, 6)), jnp.float32)

    def loss(params, x):
        return jnp.sum(nnx.merge(graphdef, params)(x[..., :3], x[..., 3:]) ** 2)

    with compile_for("tpu"):
        assert_the_gradient_of_one_device(loss, params, x, form, 1e-5)


def test_orders_go_in_one_call_where_one_leaves_a_gpu_idle():
    block = MultiOrderMambaBlock(32, d_state=8, rngs=nnx.Rngs(0))

    def scans(side, backend="gpu"):
        x = jax.ShapeDtypeStruct((1, side, side, side, 32), jnp.float32)
        with compile_for(backend):
            return str(jax.make_jaxpr(lambda x: block(x))(x)).count("name=selective_scan_forward_pass")

    assert scans(8) == 2
    assert scans(40) == scans(8, "tpu") == 8


@pytest.mark.parametrize(("in_one_call", "arrays"), [(False, 4), (True, 1)])
def test_changes_of_order_are_not_fused_into_blocks(in_one_call, arrays):
    """Else a GPU's compiler takes minutes for the gradient of each layer, not seconds."""
    block = MultiOrderMambaBlock(4, d_state=2, in_one_call=in_one_call, rngs=nnx.Rngs(0))
    jaxpr = str(jax.make_jaxpr(block)(jnp.ones((1, 2, 3, 4, 4))))
    assert jaxpr.count("optimization_barrier") == arrays


def test_mamba_parameters_start_as_in_mamba_ssm():
    layer = Mamba(64, d_state=16, rngs=nnx.Rngs(0))
    step = jax.nn.softplus(layer.dt_bias[...])
    assert 1e-3 * 0.999 <= float(step.min()) < 2e-3
    assert 5e-2 < float(step.max()) <= 1e-1 * 1.001
    np.testing.assert_allclose(np.exp(layer.A_log[...][5]), np.arange(1, 17), rtol=1e-6)
    assert float(jnp.abs(layer.dt_proj.kernel[...]).max()) <= 0.5  # dt_rank 4
