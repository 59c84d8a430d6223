"""Under JAX's flags against silent promotion: of ranks, which hides mistakes, and of dtypes, which costs."""

import contextlib

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from scan_contract import TESTED, random_arguments, value_and_gradients

from jaxmamba3d.losses import hard_counts, pseudo_dice, segmentation_loss
from jaxmamba3d.nets import NetConfig, build_net


@pytest.fixture(autouse=True, params=["ranks", "dtypes"])
def strict(request):
    with contextlib.ExitStack() as flags:
        if request.param == "ranks":
            flags.enter_context(jax.numpy_rank_promotion("raise"))
        else:
            flags.enter_context(jax.numpy_dtype_promotion("strict"))
        yield


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("implementation", ["reference", *TESTED])
def test_the_scan(implementation, dtype):
    arguments = random_arguments(2, 9, 8, 4, dtype)
    found = value_and_gradients(arguments, implementation, delta_softplus=True)
    assert all(bool(jnp.isfinite(x).all()) for x in found.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_net_and_its_loss(dtype):
    config = NetConfig(
        name="multisegmamba",
        in_channels=1,
        num_classes=3,
        features=(4, 8),
        kernel_sizes=((3, 3, 3),) * 2,
        strides=((1, 1, 1), (2, 2, 2)),
        blocks_per_stage=(1, 1),
        decoder_blocks_per_stage=(1,),
        dtype=dtype,
    )
    net = build_net(config, rngs=nnx.Rngs(0))
    image, labels = jnp.ones((2, 4, 4, 4, 1)), jnp.ones((2, 4, 4, 4), jnp.int32)

    def loss(net):
        logits = net(image)
        dice = pseudo_dice(hard_counts(logits[0], labels))
        return segmentation_loss(logits, labels, batch_dice=True), dice

    (value, dice), gradients = nnx.value_and_grad(loss, has_aux=True)(net)
    assert jnp.isfinite(value)
    assert dice.shape == (2,)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(gradients))


def test_the_loss_of_regions():
    logits, labels, regions = jnp.ones((2, 4, 4, 4, 2)), jnp.ones((2, 4, 4, 4), jnp.int32), ((1, 2), (2,))
    loss = segmentation_loss([logits], labels, batch_dice=False, regions=regions, ignore_label=3)
    assert jnp.isfinite(loss)
    assert pseudo_dice(hard_counts(logits, labels, regions=regions)).tolist() == [1.0, 0.0]
