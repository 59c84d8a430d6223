"""Dice and cross entropy with deep supervision, and the counts behind validation's pseudo-Dice."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmamba3d.checks import check_shape, check_that

SMOOTH = 1e-5
SPACE = (1, 2, 3)


class HardCounts(NamedTuple):
    """Voxels of each foreground class over a batch, int32 [K-1] each; a pytree that adds up over batches."""

    true_positive: jax.Array
    false_positive: jax.Array
    false_negative: jax.Array


def segmentation_loss(
    logits: jax.Array | Sequence[jax.Array],
    labels: jax.Array,
    *,
    batch_dice: bool,
    ignore_label: int | None = None,
) -> jax.Array:
    """Deep-supervision loss of a network's outputs against one full-resolution label array.

    `deep_supervision_loss` with targets from `subsample_labels`.

    Args:
        logits: outputs [B, X_i, Y_i, Z_i, K], highest resolution first, or that one alone; any float dtype.
        labels: [B, X, Y, Z] int, classes at the highest resolution; negative means background
            (nnU-Net marks what lies outside the image with -1).
        batch_dice: Dice of the whole batch as if it were one image, else the mean of each sample's Dice.
        ignore_label: voxels of this label count nowhere.

    Returns:
        A scalar, float32.

    Numerics:
        Softmax, logarithm and all sums in float32 whatever the logits' dtype.

    Raises:
        ValueError: shapes that do not fit together, or a negative ignore_label.

    Source:
        nnU-Net v2, training/loss: DC_and_CE_loss, MemoryEfficientSoftDiceLoss, DeepSupervisionWrapper.
    """
    outputs = logits if isinstance(logits, tuple | list) else (logits,)
    check_shape("labels", labels, "[B, X, Y, Z] of the first output", outputs[0].shape[:-1])
    targets = [subsample_labels(labels, output.shape[1:4]) for output in outputs]
    return deep_supervision_loss(outputs, targets, batch_dice=batch_dice, ignore_label=ignore_label)


def deep_supervision_loss(
    outputs: Sequence[jax.Array],
    targets: Sequence[jax.Array],
    *,
    batch_dice: bool,
    ignore_label: int | None = None,
) -> jax.Array:
    """Weighted sum of the losses of all outputs: sum_i w_i dice_cross_entropy(output_i, target_i).

    The weights are those of `deep_supervision_weights`; an output of weight 0 is never read, so that the
    compiler drops what only it needs.

    Args:
        outputs: logits [B, X_i, Y_i, Z_i, K], highest resolution first.
        targets: labels [B, X_i, Y_i, Z_i] int.
        batch_dice, ignore_label: see `segmentation_loss`.

    Returns:
        A scalar, float32.
    """
    weighted = zip(deep_supervision_weights(len(outputs)), outputs, targets, strict=True)
    return sum(w * dice_cross_entropy(o, t, batch_dice, ignore_label) for w, o, t in weighted if w)


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

    p, truth = jnp.exp(logits - normalizer)[..., 1:], truth[..., 1:]
    intersection = jnp.sum(p, SPACE, where=truth)
    predicted = jnp.sum(p, SPACE, where=valid)
    true = jnp.sum(truth, SPACE).astype(jnp.float32)
    if batch_dice:
        intersection, predicted, true = (x.sum(0) for x in (intersection, predicted, true))
    dice = (2 * intersection + SMOOTH) / (predicted + true + SMOOTH)
    return cross_entropy - jnp.mean(dice)


def hard_counts(logits: jax.Array, labels: jax.Array, *, ignore_label: int | None = None) -> HardCounts:
    """Voxels of the batch that the largest logit gets right and wrong, by foreground class.

    Args:
        logits: [B, X, Y, Z, K], highest resolution.
        labels: [B, X, Y, Z] int, as in `segmentation_loss`.
        ignore_label: voxels of this label count nowhere.

    Returns:
        int32 counts [K-1] each; sum them over batches before `pseudo_dice`.

    Source:
        nnU-Net v2, nnUNetTrainer.validation_step.
    """
    classes = logits.shape[-1]
    truth, valid = _one_hot(labels, classes, ignore_label)
    found, _ = _one_hot(jnp.argmax(logits, -1), classes, None)
    truth, found = truth[..., 1:], (found & valid)[..., 1:]
    count = partial(jnp.sum, axis=(0, *SPACE), dtype=jnp.int32)
    return HardCounts(count(truth & found), count(~truth & found), count(truth & ~found))


def pseudo_dice(counts: HardCounts) -> jax.Array:
    """Dice of each foreground class, 2 TP / (2 TP + FP + FN), [K-1] float32; NaN where there is neither."""
    twice = 2.0 * counts.true_positive
    return jnp.divide(twice, twice + counts.false_positive + counts.false_negative)


def _one_hot(labels, classes, ignore_label):
    """One-hot labels [B, X, Y, Z, K] (no class where ignored) and valid voxels [B, X, Y, Z, 1], both bool."""
    check_that(ignore_label is None or ignore_label >= 0, "ignore_label", "None or at least 0", ignore_label)
    labels = jnp.maximum(labels, 0)[..., None]
    valid = jnp.full(labels.shape, True) if ignore_label is None else labels != ignore_label
    return (labels == jnp.arange(classes)) & valid, valid
