"""Losses and gradients against nnU-Net's, counts against a direct definition.

`golden/nnunet/loss.npz` holds nnU-Net's arrays, channels first; large gradients are thinned to every second
voxel along each axis, and `loss.json` holds the norm of each whole gradient.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_data import GOLDEN, golden_arrays
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tolerances import assert_close, rounding

from jaxmamba3d.losses import (
    HardCounts,
    class_sums,
    deep_supervision_weights,
    hard_counts,
    loss_of_sums,
    pseudo_dice,
    segmentation_loss,
    segmentation_sums,
    subsample_labels,
)

RECORDED = golden_arrays("nnunet/loss.npz")
SUMMARY = json.loads((GOLDEN / "nnunet" / "loss.json").read_text())
CASES = ("full", "absent3", "absent2_sample0", "background_only", "ignore4")


def channels_last(name):
    return jnp.asarray(np.moveaxis(RECORDED[name], 1, -1))


LOGITS = channels_last("logits")
LABELS = {case: channels_last(f"target_{case}")[..., 0] for case in CASES}
# Both sides sum float32 terms of one sign, in orders of their own.
TOLERANCE = rounding("float32", 64)

static = {"static_argnames": ("batch_dice", "ignore_label")}
loss_of = jax.jit(segmentation_loss, **static)
loss_and_gradient = jax.jit(jax.value_and_grad(segmentation_loss), **static)


@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_those_of_nnunet(case, batch_dice):
    ignore = 4 if case == "ignore4" else None
    name = f"{case}_batchdice{batch_dice}"
    loss, gradient = loss_and_gradient(LOGITS, LABELS[case], batch_dice=batch_dice, ignore_label=ignore)
    assert loss.dtype == jnp.float32
    assert_close(loss, RECORDED[f"loss_{name}"], TOLERANCE, name)
    assert_close(gradient[:, ::2, ::2, ::2], channels_last(f"grad_{name}"), 1e-5, name)
    assert_close(jnp.linalg.norm(gradient.ravel()), SUMMARY[name]["grad_norm"], 1e-5, name)


@pytest.mark.parametrize("batch_dice", [True, False])
def test_deep_supervision_is_that_of_nnunet(batch_dice):
    logits = [channels_last(f"ds_logits{i}") for i in range(5)]
    targets = [channels_last(f"ds_target{i}")[..., 0] for i in range(5)]

    @jax.jit
    @jax.value_and_grad
    def supervised(logits):
        pairs = zip(logits[:-1], targets[:-1], strict=True)
        sums = [class_sums(output, target, batch_dice=batch_dice) for output, target in pairs]
        return loss_of_sums(sums, batch_dice=batch_dice)

    loss, gradients = supervised(logits)
    assert_close(loss, SUMMARY[f"deep_supervision_5_batchdice{batch_dice}"], TOLERANCE)
    for i, gradient in enumerate(gradients[:-1]):
        step = 2 if gradient.shape[1] > 4 else 1
        expected = channels_last(f"ds_grad{i}_batchdice{batch_dice}")
        assert_close(gradient[:, ::step, ::step, ::step], expected, 1e-5, f"output {i}")
    assert not gradients[-1].any()


def test_deep_supervision_weights_are_those_of_nnunet():
    for count, weights in SUMMARY["deep_supervision_weights"].items():
        np.testing.assert_allclose(deep_supervision_weights(int(count)), weights, rtol=1e-15)
    assert deep_supervision_weights(1) == (1.0,)


def test_outputs_of_weight_zero_are_never_read():
    outputs = (LOGITS, LOGITS[:, ::2, ::2, ::2], jnp.full((2, 3, 3, 3, 4), jnp.nan))
    loss = loss_of(outputs, LABELS["full"], batch_dice=True)
    program = jax.make_jaxpr(lambda *o: segmentation_loss(o, LABELS["full"], batch_dice=True))(*outputs)
    last_input = program.jaxpr.invars[-1]
    assert np.isfinite(loss)
    assert all(last_input is not operand for equation in program.eqns for operand in equation.invars)


def test_targets_are_subsampled_nearest_exact():
    """torch's nearest-exact takes voxel floor((i + 0.5) step), also with a step of its own for each axis."""
    labels = jnp.arange(8 * 6 * 5).reshape(1, 8, 6, 5)
    expected = np.asarray(labels)[:, [2, 6]][:, :, [1, 4]]
    np.testing.assert_array_equal(subsample_labels(labels, (2, 2, 5)), expected)

    outputs = (LOGITS, LOGITS[:, ::2, ::3, :], LOGITS[:, :1, :1, :1])
    targets = [LABELS["full"], LABELS["full"][:, 1::2, 1::3], None]
    pairs = zip(outputs[:-1], targets[:-1], strict=True)
    sums = [class_sums(output, target, batch_dice=False) for output, target in pairs]
    expected = loss_of_sums(sums, batch_dice=False)
    assert_close(loss_of(outputs, LABELS["full"], batch_dice=False), expected, 1e-7)


@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.parametrize("regions", [None, ((1, 2), (2,), (3,), (1,))])
def test_sums_of_parts_add_up_to_the_batch(batch_dice, regions):
    options = {"batch_dice": batch_dice, "ignore_label": 4, "regions": regions}
    outputs = (LOGITS, LOGITS[:, ::2, ::2, ::2], LOGITS[:, :1, :1, :1])
    labels = LABELS["ignore4"]
    sums = jax.jit(functools.partial(segmentation_sums, **options))
    parts = [sums([x[i : i + 1] for x in outputs], labels[i : i + 1]) for i in (0, 1)]
    found = loss_of_sums(jax.tree.map(jnp.add, *parts), batch_dice=batch_dice)
    expected = jax.jit(functools.partial(segmentation_loss, **options))(outputs, labels)
    assert_close(found, expected, TOLERANCE)


@pytest.mark.parametrize("batch_dice", [True, False])
def test_sharding_the_batch_changes_nothing(batch_dice):
    """The Dice of the batch is that of all devices' samples together, so it must cross devices."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((8, 8, 8, 8, 3)).astype(np.float32)
    # Samples differ in what they hold: a mean of per-device Dice would be far from the batch's.
    labels = (rng.random((8, 8, 8, 8)) < np.linspace(0, 1, 8)[:, None, None, None]) * 2

    sharding = NamedSharding(Mesh(jax.devices(), ("data",)), PartitionSpec("data"))
    sharded = jax.device_put((logits, labels), sharding)
    assert len(sharded[0].sharding.device_set) == 8
    loss, gradient = loss_and_gradient(*sharded, batch_dice=batch_dice)
    expected_loss, expected_gradient = loss_and_gradient(logits, labels, batch_dice=batch_dice)
    assert_close(loss, expected_loss, 1e-6)
    assert_close(gradient, expected_gradient, 1e-5)
    assert gradient.sharding.is_equivalent_to(sharding, gradient.ndim)


def test_sums_are_float32_for_bfloat16_logits():
    """bfloat16 holds no whole numbers above 256 exactly; only the logits themselves may be rounded."""
    rounded = LOGITS.astype(jnp.bfloat16)
    loss, gradient = loss_and_gradient(rounded, LABELS["full"], batch_dice=True)
    expected = loss_of(rounded.astype(jnp.float32), LABELS["full"], batch_dice=True)
    assert loss.dtype == jnp.float32
    assert gradient.dtype == jnp.bfloat16
    assert_close(loss, expected, 1e-6)


def test_labels_outside_the_image_are_background():
    labels = LABELS["full"]
    outside = jnp.where(labels == 0, -1, labels)
    assert loss_of(LOGITS, outside, batch_dice=True) == loss_of(LOGITS, labels, batch_dice=True)


def test_a_label_that_is_no_class_makes_the_loss_nan():
    """Without a class a voxel's cross entropy would fall for ever with all logits."""
    labels = jnp.asarray(LABELS["full"]).at[0, 0, 0, 0].set(LOGITS.shape[-1])
    assert jnp.isnan(loss_of(LOGITS, labels, batch_dice=True))
    assert jnp.isfinite(loss_of(LOGITS, labels, batch_dice=True, ignore_label=LOGITS.shape[-1]))


def test_voxels_to_ignore_raise_no_false_alarm():
    labels = jnp.asarray(LABELS["full"]).at[0, 0].set(9)
    with jax.debug_nans(True):
        assert jnp.isfinite(segmentation_loss(LOGITS, labels, batch_dice=True, ignore_label=9))


@pytest.mark.parametrize("regions", [None, ((1, 2), (2,), (3,), (1,))])
def test_a_batch_of_which_nothing_counts_teaches_nothing(regions):
    labels = jnp.full(LABELS["full"].shape, 9)
    options = {"batch_dice": True, "ignore_label": 9, "regions": regions}
    loss, gradient = jax.value_and_grad(lambda x: segmentation_loss(x, labels, **options))(LOGITS)
    assert jnp.isfinite(loss)
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("regions", [None, ((1, 2), (2,), (3,), (1,))])
def test_large_logits_do_not_overflow(regions):
    options = {"batch_dice": True, "regions": regions}
    loss, gradient = jax.value_and_grad(segmentation_loss)(300 * LOGITS, LABELS["full"], **options)
    assert jnp.isfinite(loss)
    assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize("ignore", [0, 2])
@pytest.mark.parametrize("regions", [None, ((1, 2), (2,), (3,), (1,))])
def test_the_label_to_ignore_may_be_that_of_a_class_or_in_a_region(regions, ignore):
    labels = LABELS["full"]
    apart = jnp.where(labels == ignore, 9, labels)
    for function in (functools.partial(segmentation_loss, batch_dice=True), hard_counts):
        found = function(LOGITS, labels, ignore_label=ignore, regions=regions)
        expected = function(LOGITS, apart, ignore_label=9, regions=regions)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_counts_of_regions_need_a_channel_each():
    with pytest.raises(ValueError, match=r"logits must have shape .* a channel a region = \[1, 2, 2, 2, 1\]"):
        hard_counts(jnp.ones((1, 2, 2, 2, 3)), jnp.ones((1, 2, 2, 2), int), regions=((1,),))


def test_smoothing_decides_where_a_class_is_absent():
    """8 voxels of background, foreground probability 1e-6: Dice s / (8e-6 + s) with s = 1e-5."""
    logits = jnp.broadcast_to(jnp.log(jnp.array([1 - 1e-6, 1e-6])), (1, 2, 2, 2, 2))
    loss = segmentation_loss(logits, jnp.zeros((1, 2, 2, 2), int), batch_dice=True)
    assert_close(loss, 1e-6 - 1e-5 / 1.8e-5, 1e-5)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="labels must have shape"):
        segmentation_loss(LOGITS, LABELS["full"][:, 1:], batch_dice=True)
    with pytest.raises(ValueError, match="multiple of the output's shape"):
        segmentation_loss((LOGITS, LOGITS[:, :5], LOGITS), LABELS["full"], batch_dice=True)
    with pytest.raises(ValueError, match=r"logits must be of at least 2 classes \(or give regions\), got 1"):
        segmentation_loss(LOGITS[..., :1], LABELS["full"], batch_dice=True)
    for other in (jnp.zeros((4, 3, 3, 3, 4)), jnp.zeros((2, 3, 3, 3, 5))):
        with pytest.raises(ValueError, match=r"logits must have shape .* of the first one's B and K"):
            segmentation_loss((LOGITS, other, LOGITS), LABELS["full"], batch_dice=True)
    with pytest.raises(ValueError, match="labels must have shape"):
        hard_counts(LOGITS, LABELS["full"][:1, :1, :1, :1])
    with pytest.raises(ValueError, match="ignore_label must be None or at least 0, got -1"):
        segmentation_loss(LOGITS, LABELS["full"], batch_dice=True, ignore_label=-1)


@pytest.mark.parametrize(("case", "ignore"), [("full", None), ("ignore4", 4)])
def test_counts_are_those_of_the_definition(case, ignore):
    found, labels = np.argmax(LOGITS, -1), np.asarray(LABELS[case])
    counts = jax.jit(hard_counts, static_argnames="ignore_label")(LOGITS, LABELS[case], ignore_label=ignore)
    kept = labels != 4
    for k in (1, 2, 3):
        here = [count[k - 1] for count in counts]
        assert here == [
            np.sum((found == k) & (labels == k)),
            np.sum((found == k) & (labels != k) & kept),
            np.sum((found != k) & (labels == k)),
        ]


def test_pseudo_dice():
    counts = HardCounts(np.array([6, 0, 0]), np.array([1, 2, 0]), np.array([3, 0, 0]))
    np.testing.assert_allclose(pseudo_dice(counts), [0.75, 0, np.nan], rtol=1e-6)
    many = HardCounts(*(np.array([2**31]) for _ in range(3)))
    np.testing.assert_allclose(pseudo_dice(many), [0.5], rtol=1e-6)


REGIONS = ((1, 2, 3), (2, 3), (3,))


@pytest.mark.parametrize("ignore", [None, 4])
@pytest.mark.parametrize("batch_dice", [True, False])
def test_regions_have_a_sigmoid_each(batch_dice, ignore):
    """Against nnU-Net's DC_and_BCE_loss, written out in float64."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (2, 6, 5, 4, 3)).astype(np.float32)
    labels = rng.integers(-1, 4 if ignore is None else 5, logits.shape[:-1])
    x, valid = logits.astype(float), np.ones(labels.shape) if ignore is None else labels != ignore
    truth = np.stack([np.isin(labels, values) for values in REGIONS], -1).astype(float)
    p = 1 / (1 + np.exp(-x))
    entropy = -(truth * np.log(p) + (1 - truth) * np.log(1 - p))
    # With an ignore label nnU-Net divides by the voxels, else by the voxels of all regions.
    entropy = entropy.mean() if ignore is None else (entropy * valid[..., None]).sum() / valid.sum()
    axes = (0, 1, 2, 3) if batch_dice else (1, 2, 3)
    kept = valid[..., None]
    overlap, both = (p * truth * kept).sum(axes), ((p + truth) * kept).sum(axes)
    expected = entropy - np.mean((2 * overlap + 1e-5) / (both + 1e-5))
    found = segmentation_loss(
        jnp.asarray(logits), jnp.asarray(labels), batch_dice=batch_dice, ignore_label=ignore, regions=REGIONS
    )
    assert_close(found, expected, TOLERANCE)


def test_regions_are_counted_where_their_logit_is_above_0():
    logits = jnp.array([[2.0, -1.0], [1.0, 1.0], [-3.0, 2.0], [5.0, 5.0]]).reshape(1, 4, 1, 1, 2)
    labels = jnp.array([1, 2, 0, 3]).reshape(1, 4, 1, 1)
    counts = hard_counts(logits, labels, ignore_label=3, regions=((1, 2), (2,)))
    assert [list(map(int, count)) for count in counts] == [[2, 1], [0, 1], [0, 0]]


def test_a_logit_of_0_is_in_no_region_and_counts_are_whole():
    counts = hard_counts(jnp.zeros((1, 2, 2, 2, 2)), jnp.ones((1, 2, 2, 2), int), regions=((1, 2), (2,)))
    assert [count.tolist() for count in counts] == [[0, 0], [0, 0], [8, 0]]
    assert {count.dtype for count in counts} == {jnp.dtype("int32")}


def test_regions_are_summed_in_float32_for_bfloat16_logits():
    labels = jnp.zeros((1, 8, 8, 8), int)
    logits = jnp.full((1, 8, 8, 8, 2), 1.0, jnp.bfloat16)
    options = {"batch_dice": True, "regions": ((1, 2), (2,))}
    found = segmentation_loss(logits, labels, **options)
    assert found.dtype == jnp.float32
    expected = segmentation_loss(logits.astype(jnp.float32), labels, **options)
    assert_close(found, expected, rounding("float32", 8**3))


def test_region_logits_need_a_channel_a_region():
    with pytest.raises(ValueError, match=r"logits must have shape .* a channel a region"):
        segmentation_loss(
            jnp.zeros((1, 2, 2, 2, 4)), jnp.zeros((1, 2, 2, 2), int), batch_dice=True, regions=REGIONS
        )
