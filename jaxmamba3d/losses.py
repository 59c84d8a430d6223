"""Dice and cross entropy with deep supervision, and the counts behind validation's pseudo-Dice.

Classes exclude each other and share a softmax; regions may overlap and have a sigmoid each.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmamba3d.checks import check_shape, check_that

SMOOTH = 1e-5
SPACE = (1, 2, 3)

Regions = tuple[tuple[int, ...], ...]
"""The label values of each region, one region a channel of the logits."""


class HardCounts(NamedTuple):
    """Voxels of each foreground class (K-1) or region (K) over a batch, int32; a pytree that adds up."""

    true_positive: jax.Array
    false_positive: jax.Array
    false_negative: jax.Array


def segmentation_loss(
    logits: jax.Array | Sequence[jax.Array],
    labels: jax.Array,
    *,
    batch_dice: bool,
    ignore_label: int | None = None,
    regions: Regions | None = None,
) -> jax.Array:
    """Deep-supervision loss of a network's outputs against one full-resolution label array.

    `deep_supervision_loss` with targets from `subsample_labels`.

    Args:
        logits: outputs [B, X_i, Y_i, Z_i, K], highest resolution first, or that one alone; any float dtype.
        labels: [B, X, Y, Z] int, classes at the highest resolution; negative means background
            (nnU-Net marks what lies outside the image with -1).
        batch_dice: Dice of the whole batch as if it were one image, else the mean of each sample's Dice.
        ignore_label: voxels of this label count nowhere.
        regions: label values of each channel, see `region_loss`; None: channels are classes, see
            `dice_cross_entropy`.

    Returns:
        A scalar, float32.

    Numerics:
        Softmax or sigmoid, logarithm and all sums in float32 whatever the logits' dtype.

    Raises:
        ValueError: shapes that do not fit together, or a negative ignore_label.

    Source:
        nnU-Net v2, training/loss: DC_and_CE_loss, DC_and_BCE_loss, MemoryEfficientSoftDiceLoss,
        DeepSupervisionWrapper.
    """
    outputs = logits if isinstance(logits, tuple | list) else (logits,)
    check_shape("labels", labels, "[B, X, Y, Z] of the first output", outputs[0].shape[:-1])
    targets = [subsample_labels(labels, output.shape[1:4]) for output in outputs]
    return deep_supervision_loss(
        outputs, targets, batch_dice=batch_dice, ignore_label=ignore_label, regions=regions
    )


def deep_supervision_loss(
    outputs: Sequence[jax.Array],
    targets: Sequence[jax.Array],
    *,
    batch_dice: bool,
    ignore_label: int | None = None,
    regions: Regions | None = None,
) -> jax.Array:
    """Weighted sum of the losses of all outputs: sum_i w_i loss(output_i, target_i).

    The weights are those of `deep_supervision_weights`; an output of weight 0 is never read, so that the
    compiler drops what only it needs.

    Args:
        outputs: logits [B, X_i, Y_i, Z_i, K], highest resolution first.
        targets: labels [B, X_i, Y_i, Z_i] int.
        batch_dice, ignore_label, regions: see `segmentation_loss`.

    Returns:
        A scalar, float32.
    """

    def loss(output, target):
        if regions is None:
            return dice_cross_entropy(output, target, batch_dice, ignore_label)
        return region_loss(output, target, regions, batch_dice, ignore_label)

    weighted = zip(deep_supervision_weights(len(outputs)), outputs, targets, strict=True)
    return sum(weight * loss(output, target) for weight, output, target in weighted if weight)


def deep_supervision_weights(count: int) -> tuple[float, ...]:
    """Weights 1/2^i of the outputs, highest resolution first, the last 0, divided by their sum."""
    if count == 1:
        return (1.0,)
    raw = [0.5**i for i in range(count - 1)]
    return (*(weight / sum(raw) for weight in raw), 0.0)


def subsample_labels(labels: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """Labels at a lower resolution by nearest-exact: new voxel i is old voxel floor((i + 0.5) step).

    Args:
        labels: [B, X, Y, Z].
        shape: the sizes wanted, divisors of X, Y, Z.

    Returns:
        [B, *shape], a strided slice.

    Raises:
        ValueError: a size does not divide.
    """
    slices = [slice(None)]
    for full, part in zip(labels.shape[1:], shape, strict=True):
        check_that(full % part == 0, "labels", f"a multiple of the output's shape {shape}", labels.shape[1:])
        step = full // part
        slices.append(slice(step // 2, None, step))
    return labels[tuple(slices)]


# Checkpointed: the backward pass keeps the logits and recomputes the softmax, fused into both passes.
@partial(jax.checkpoint, static_argnums=(2, 3))
def dice_cross_entropy(
    logits: jax.Array, labels: jax.Array, batch_dice: bool, ignore_label: int | None = None
) -> jax.Array:
    """Mean cross entropy over the voxels plus negative soft Dice, the mean over the foreground classes.

    dice_k = (2 sum p_k t_k + s) / (sum p_k + sum t_k + s), p = softmax(logits), t one-hot, s = 1e-5;
    classes absent from the labels count too.

    Args:
        logits: [B, X, Y, Z, K], any float dtype.
        labels: [B, X, Y, Z] int.
        batch_dice, ignore_label: see `segmentation_loss`.

    Returns:
        A scalar, float32.
    """
    logits = logits.astype(jnp.float32)
    truth, valid = _one_hot(labels, logits.shape[-1], ignore_label)
    normalizer = jax.nn.logsumexp(logits, -1, keepdims=True)
    log_likelihood = jnp.sum(logits, -1, keepdims=True, where=truth) - normalizer
    cross_entropy = -jnp.sum(log_likelihood, where=valid) / jnp.maximum(jnp.sum(valid), 1)

    p = jnp.exp(logits - normalizer)
    return cross_entropy - _soft_dice(p[..., 1:], truth[..., 1:], valid, batch_dice)


@partial(jax.checkpoint, static_argnums=(2, 3, 4))
def region_loss(
    logits: jax.Array,
    labels: jax.Array,
    regions: Regions,
    batch_dice: bool,
    ignore_label: int | None = None,
) -> jax.Array:
    """Binary cross entropy plus negative soft Dice, the mean over the regions, of p = sigmoid(logits).

    As in nnU-Net the cross entropy is the mean over voxels and regions, but with an ignore label the mean
    over the voxels of its sum over the regions.

    Args:
        logits: [B, X, Y, Z, K], any float dtype.
        labels: [B, X, Y, Z] int.
        regions: the label values of each of the K channels.
        batch_dice, ignore_label: see `segmentation_loss`.

    Returns:
        A scalar, float32.
    """
    logits = logits.astype(jnp.float32)
    truth, valid = _in_regions(labels, regions, ignore_label)
    check_shape("logits", logits, "[B, X, Y, Z, K], a channel a region", truth.shape)
    entropies = jax.nn.softplus(logits) - jnp.where(truth, logits, 0)
    counted = jnp.sum(valid) * (len(regions) if ignore_label is None else 1)
    cross_entropy = jnp.sum(entropies, where=valid) / jnp.maximum(counted, 1)
    return cross_entropy - _soft_dice(jax.nn.sigmoid(logits), truth, valid, batch_dice)


def _soft_dice(p, truth, valid, batch_dice):
    """The mean soft Dice of probabilities [B, X, Y, Z, K] over the K channels."""
    intersection = jnp.sum(p, SPACE, where=truth)
    predicted = jnp.sum(p, SPACE, where=valid)
    true = jnp.sum(truth, SPACE).astype(jnp.float32)
    if batch_dice:
        intersection, predicted, true = (x.sum(0) for x in (intersection, predicted, true))
    return jnp.mean((2 * intersection + SMOOTH) / (predicted + true + SMOOTH))


def hard_counts(
    logits: jax.Array,
    labels: jax.Array,
    *,
    ignore_label: int | None = None,
    regions: Regions | None = None,
) -> HardCounts:
    """Voxels of the batch that a segmentation by the logits gets right and wrong.

    Args:
        logits: [B, X, Y, Z, K], highest resolution; the largest is the class, or regions are those above 0.
        labels: [B, X, Y, Z] int, as in `segmentation_loss`.
        ignore_label, regions: see `segmentation_loss`.

    Returns:
        int32 counts by foreground class [K-1] or region [K]; sum them over batches before `pseudo_dice`.

    Source:
        nnU-Net v2, nnUNetTrainer.validation_step.
    """
    if regions is None:
        classes = logits.shape[-1]
        truth, valid = _one_hot(labels, classes, ignore_label)
        found, _ = _one_hot(jnp.argmax(logits, -1), classes, None)
        truth, found = truth[..., 1:], (found & valid)[..., 1:]
    else:
        truth, valid = _in_regions(labels, regions, ignore_label)
        found = (logits > 0) & valid
    count = partial(jnp.sum, axis=(0, *SPACE), dtype=jnp.int32)
    return HardCounts(count(truth & found), count(~truth & found), count(truth & ~found))


def pseudo_dice(counts: HardCounts) -> jax.Array:
    """Dice of each class or region counted, 2 TP / (2 TP + FP + FN), float32; NaN where there is neither."""
    twice = 2.0 * counts.true_positive
    return jnp.divide(twice, twice + counts.false_positive + counts.false_negative)


def _one_hot(labels, classes, ignore_label):
    """One-hot labels [B, X, Y, Z, K] (no class where ignored) and valid voxels [B, X, Y, Z, 1], both bool."""
    labels, valid = _valid(labels, ignore_label)
    return (labels == jnp.arange(classes)) & valid, valid


def _in_regions(labels, regions, ignore_label):
    """Regions of each voxel [B, X, Y, Z, K] (none where ignored) and valid voxels [B, X, Y, Z, 1], bool."""
    labels, valid = _valid(labels, ignore_label)
    inside = [(labels == jnp.array(values)).any(-1) for values in regions]
    return jnp.stack(inside, -1) & valid, valid


def _valid(labels, ignore_label):
    """Labels without negative ones, and the voxels that count, both [B, X, Y, Z, 1]."""
    check_that(ignore_label is None or ignore_label >= 0, "ignore_label", "None or at least 0", ignore_label)
    labels = jnp.maximum(labels, 0)[..., None]
    return labels, jnp.full(labels.shape, True) if ignore_label is None else labels != ignore_label
