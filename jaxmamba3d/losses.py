"""Dice and cross entropy with deep supervision, and the counts behind validation's pseudo-Dice.

Classes exclude each other and share a softmax; regions may overlap and have a sigmoid each.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxmamba3d.checks import check_shape, check_that

SMOOTH = 1e-5
SPACE = (1, 2, 3)
REGION_LOGITS = "[B, X, Y, Z, K], a channel a region"

Regions = tuple[tuple[int, ...], ...]
"""The label values of each region, one region a channel of the logits."""


class LossSums(NamedTuple):
    """What the loss of one output is made of; sums of the parts of a batch add up to those of the batch.

    Args:
        entropy: cross entropy summed over what counts, float32.
        counted: voxels (of all regions) that count, float32.
        overlap, extent: [K] of each foreground class or region, float32: 2 sum p t and sum p + sum t, whose
            quotient is the Dice of the batch; or the sum of the samples' Dice, and their number.
    """

    entropy: jax.Array
    counted: jax.Array
    overlap: jax.Array
    extent: jax.Array


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

    `loss_of_sums` of `segmentation_sums`.

    Args:
        logits: outputs [B, X_i, Y_i, Z_i, K], highest resolution first, or that one alone; any float dtype.
        labels: [B, X, Y, Z] int, classes at the highest resolution; negative means background
            (nnU-Net marks what lies outside the image with -1). Any other value makes the loss NaN; with
            regions, it is in none.
        batch_dice: Dice of the whole batch as if it were one image, else the mean of each sample's Dice.
        ignore_label: voxels of this label count nowhere.
        regions: label values of each channel, see `region_sums`; None: channels are classes, see
            `class_sums`.

    Returns:
        A scalar, float32.

    Numerics:
        Softmax or sigmoid, logarithm and all sums in float32 whatever the logits' dtype.

    Raises:
        ValueError: shapes that do not fit together, a single class, or a negative ignore_label.

    Source:
        nnU-Net v2, training/loss: DC_and_CE_loss, DC_and_BCE_loss, MemoryEfficientSoftDiceLoss,
        DeepSupervisionWrapper.
    """
    sums = segmentation_sums(
        logits, labels, batch_dice=batch_dice, ignore_label=ignore_label, regions=regions
    )
    return loss_of_sums(sums, batch_dice=batch_dice)


def segmentation_sums(
    logits: jax.Array | Sequence[jax.Array],
    labels: jax.Array,
    *,
    batch_dice: bool,
    ignore_label: int | None = None,
    regions: Regions | None = None,
) -> tuple[LossSums, ...]:
    """The sums of `segmentation_loss` for each output that it weighs, highest resolution first.

    Args and Raises are those of `segmentation_loss`; targets are from `subsample_labels`. The last of several
    outputs has weight 0 and is never read, so that the compiler drops what only it needs.
    """
    outputs = logits if isinstance(logits, tuple | list) else (logits,)
    check_shape("labels", labels, "[B, X, Y, Z] of the first output", outputs[0].shape[:-1])

    batch, *_, channels = outputs[0].shape
    options = {"batch_dice": batch_dice, "ignore_label": ignore_label}
    if regions is None:
        sums_of = partial(class_sums, **options)
    else:
        sums_of = partial(region_sums, regions=regions, **options)
    # The backward pass keeps the logits and recomputes the softmax, fused into both passes.
    sums_of = jax.checkpoint(sums_of)

    def sums(output):
        legend = "[B, X_i, Y_i, Z_i, K] of the first one's B and K"
        check_shape("logits", output, legend, (batch, None, None, None, channels))
        return sums_of(output, subsample_labels(labels, output.shape[1:4]))

    weights = deep_supervision_weights(len(outputs))
    return tuple(sums(output) for weight, output in zip(weights, outputs, strict=True) if weight)


def loss_of_sums(sums: Sequence[LossSums], *, batch_dice: bool) -> jax.Array:
    """Weighted sum over the outputs of mean cross entropy minus mean Dice, by `deep_supervision_weights`.

    dice_k = (overlap_k + s) / (extent_k + s), s = 1e-5 for the batch's Dice; samples' Dice has it already.

    Args:
        sums: of `segmentation_sums`.
        batch_dice: see `segmentation_loss`.

    Returns:
        A scalar, float32.
    """
    smooth = SMOOTH if batch_dice else 0.0

    def loss(part: LossSums) -> jax.Array:
        dice = jnp.mean((part.overlap + smooth) / (part.extent + smooth))
        return part.entropy / jnp.maximum(part.counted, 1) - dice

    weights = deep_supervision_weights(len(sums) + 1)  # of an output more, whose weight is 0
    return sum(weight * loss(part) for weight, part in zip(weights, sums, strict=False))


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


def class_sums(
    logits: jax.Array, labels: jax.Array, *, batch_dice: bool, ignore_label: int | None = None
) -> LossSums:
    """Cross entropy over the voxels, and soft Dice of the foreground classes.

    dice_k = (2 sum p_k t_k + s) / (sum p_k + sum t_k + s), p = softmax(logits), t one-hot, s = 1e-5;
    classes absent from the labels count too.

    Args:
        logits: [B, X, Y, Z, K], any float dtype.
        labels: [B, X, Y, Z] int.
        batch_dice, ignore_label: see `segmentation_loss`.
    """
    logits, classes = logits.astype(jnp.float32), logits.shape[-1]
    check_that(classes >= 2, "logits", "of at least 2 classes (or give regions)", classes)
    truth, valid = _one_hot(labels, classes, ignore_label)
    normalizer = jax.nn.logsumexp(logits, -1, keepdims=True)
    log_likelihood = jnp.sum(logits, -1, keepdims=True, where=truth) - normalizer
    log_likelihood = jnp.where(truth.any(-1, keepdims=True) | ~valid, log_likelihood, jnp.nan)
    entropy = -jnp.sum(log_likelihood, where=valid)
    p = jnp.exp(logits - normalizer)
    counted = jnp.sum(valid, dtype=jnp.float32)
    return LossSums(entropy, counted, *_dice_sums(p[..., 1:], truth[..., 1:], valid, batch_dice))


def region_sums(
    logits: jax.Array,
    labels: jax.Array,
    *,
    regions: Regions,
    batch_dice: bool,
    ignore_label: int | None = None,
) -> LossSums:
    """Binary cross entropy and soft Dice of the regions, of p = sigmoid(logits).

    As in nnU-Net the cross entropy is the mean over voxels and regions, but with an ignore label the mean
    over the voxels of its sum over the regions.

    Args:
        logits: [B, X, Y, Z, K], any float dtype.
        labels: [B, X, Y, Z] int.
        regions: the label values of each of the K channels.
        batch_dice, ignore_label: see `segmentation_loss`.
    """
    logits = logits.astype(jnp.float32)
    truth, valid = _in_regions(labels, regions, ignore_label)
    check_shape("logits", logits, REGION_LOGITS, truth.shape)
    entropies = jax.nn.softplus(logits) - jnp.where(truth, logits, 0)
    counted = jnp.sum(valid, dtype=jnp.float32) * (len(regions) if ignore_label is None else 1)
    dice = _dice_sums(jax.nn.sigmoid(logits), truth, valid, batch_dice)
    return LossSums(jnp.sum(entropies, where=valid), counted, *dice)


def _dice_sums(p, truth, valid, batch_dice):
    """`overlap` and `extent` of `LossSums`, [K], from probabilities [B, X, Y, Z, K]."""
    overlap = 2 * jnp.sum(p, SPACE, where=truth)
    extent = jnp.sum(p, SPACE, where=valid) + jnp.sum(truth, SPACE).astype(jnp.float32)
    if batch_dice:
        return overlap.sum(0), extent.sum(0)
    dice = (overlap + SMOOTH) / (extent + SMOOTH)
    return dice.sum(0), jnp.full(dice.shape[-1], dice.shape[0], jnp.float32)


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

    Raises:
        ValueError: logits and labels are of different shapes, or there is not a channel a region.

    Source:
        nnU-Net v2, nnUNetTrainer.validation_step.
    """
    check_shape("labels", labels, "[B, X, Y, Z] of the logits", logits.shape[:-1])
    if regions is None:
        classes = logits.shape[-1]
        truth, valid = _one_hot(labels, classes, ignore_label)
        found, _ = _one_hot(jnp.argmax(logits, -1), classes, None)
        truth, found = truth[..., 1:], (found & valid)[..., 1:]
    else:
        truth, valid = _in_regions(labels, regions, ignore_label)
        check_shape("logits", logits, REGION_LOGITS, truth.shape)
        found = (logits > 0) & valid
    count = partial(jnp.sum, axis=(0, *SPACE), dtype=jnp.int32)
    return HardCounts(count(truth & found), count(~truth & found), count(truth & ~found))


def pseudo_dice(counts: HardCounts) -> jax.Array:
    """Dice of each class or region counted, 2 TP / (2 TP + FP + FN), float32; NaN where there is neither."""
    true_positive, false_positive, false_negative = (jnp.asarray(x, jnp.float32) for x in counts)
    twice = 2 * true_positive
    return jnp.divide(twice, twice + false_positive + false_negative)


def _one_hot(labels, classes, ignore_label):
    """One-hot labels [B, X, Y, Z, K] (no class where ignored) and valid voxels [B, X, Y, Z, 1], both bool."""
    labels, valid = _valid(labels, ignore_label)
    return (labels == _along_channels(jnp.arange(classes))) & valid, valid


def _in_regions(labels, regions, ignore_label):
    """Regions of each voxel [B, X, Y, Z, K] (none where ignored) and valid voxels [B, X, Y, Z, 1], bool."""
    labels, valid = _valid(labels, ignore_label)
    inside = [(labels == _along_channels(jnp.array(values))).any(-1) for values in regions]
    return jnp.stack(inside, -1) & valid, valid


def _along_channels(values):
    """[K] -> [1, 1, 1, 1, K]."""
    return lax.broadcast_to_rank(values, 5)


def _valid(labels, ignore_label):
    """Labels without negative ones, and the voxels that count, both [B, X, Y, Z, 1]."""
    check_that(ignore_label is None or ignore_label >= 0, "ignore_label", "None or at least 0", ignore_label)
    labels = jnp.maximum(labels, 0)[..., None]
    return labels, jnp.full(labels.shape, True) if ignore_label is None else labels != ignore_label
