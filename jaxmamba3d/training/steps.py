"""The jit-ed training and validation steps, and the state they pass on."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax
from jax.sharding import Mesh

from jaxmamba3d.augment import AugmentationPlan, augment
from jaxmamba3d.labels import Labels
from jaxmamba3d.losses import HardCounts, hard_counts, loss_of_sums, segmentation_sums
from jaxmamba3d.ops.backend import batch_axes
from jaxmamba3d.training.mesh import (
    constrain_state,
    place_state,
    split_by_sample,
    state_shardings,
    whole_everywhere,
)

Batch = dict[str, jax.Array]
"""image [B, X, Y, Z, C] float32 and label [B, X, Y, Z] int."""


class TrainState(NamedTuple):
    """All that a step changes. Random numbers follow from the seed and the step, so none are kept."""

    params: nnx.State
    optimizer: optax.OptState
    step: jax.Array


def abstract_state(net: nnx.Module, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and places on a mesh of the state before the first step; nothing is stored.

    Args:
        net: may have shapes in place of parameters.
        optimizer: see `make_optimizer`.
        mesh: of the devices.
    """
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), nnx.state(net, nnx.Param))
    state = TrainState(params, jax.eval_shape(optimizer.init, params), jax.ShapeDtypeStruct((), jnp.int32))

    def placed(array, sharding):
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

    return jax.tree.map(placed, state, state_shardings(mesh, state))


def init_state(params: nnx.State, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The state before the first step, of which each device of a mesh holds its part.

    Args:
        params: freshly drawn.
        optimizer: see `make_optimizer`.
        mesh: of the devices.
    """
    params = place_state(mesh, params)
    shardings = state_shardings(mesh, jax.eval_shape(optimizer.init, params))
    moments = jax.jit(optimizer.init, out_shardings=shardings)(params)
    return TrainState(params, moments, place_state(mesh, jnp.zeros((), jnp.int32)))


def make_train_step(
    net: nnx.Module,
    optimizer: optax.GradientTransformation,
    *,
    labels: Labels,
    batch_dice: bool,
    augmentation: AugmentationPlan,
    seed: int,
    accumulate: int = 1,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """One optimizer step on an augmented batch: (state, batch) -> (state, {loss, gradient_norm, finite}).

    The batch may be sharded over devices; sums over it are then global. The old state's memory is reused. A
    step whose loss, gradient or update is not finite changes nothing but the count of steps.

    Args:
        net: [B, X, Y, Z, C] -> logits, or a tuple of them; its parameters are taken from the state.
        optimizer: see `make_optimizer`.
        labels: what label values mean.
        batch_dice: see `segmentation_loss`.
        augmentation: what is done to the batch, whose patches are of its `initial_patch_size`.
        seed: of the augmentation, together with the state's step.
        accumulate: parts that the batch is computed in, one after the other; loss and gradient are the whole
            batch's, to which end the Dice of a batch takes another forward pass.
    """
    graphdef = nnx.graphdef(net)
    target = {"batch_dice": batch_dice, "ignore_label": labels.ignore, "regions": labels.regions}

    def sums_of(params, image, label):
        return segmentation_sums(nnx.merge(graphdef, params)(image), label, **target)

    loss_from = functools.partial(loss_of_sums, batch_dice=batch_dice)

    def train_step(state: TrainState, batch: Batch):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        image, label = augment(key, batch["image"], batch["label"], augmentation, batch_axes=batch_axes())
        params = whole_everywhere(state.params)
        if accumulate == 1:
            loss_of = jax.value_and_grad(lambda params: loss_from(sums_of(params, image, label)))
            loss, gradient = loss_of(params)
        else:
            parts = jax.tree.map(functools.partial(_in_parts, count=accumulate), (image, label))
            loss, gradient = _accumulated(sums_of, loss_from, params, parts)
        gradient = constrain_state(gradient)
        norm = optax.tree.norm(gradient)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params, step=state.step)
        finite = jnp.isfinite(jnp.stack([loss, norm, optax.tree.norm(updates)])).all()
        changed = optax.apply_updates(state.params, updates), optimizer_state
        kept = jax.tree.map(functools.partial(jnp.where, finite), changed, state[:2])
        metrics = {"loss": loss, "gradient_norm": norm, "finite": finite}
        return TrainState(*constrain_state(kept), state.step + 1), whole_everywhere(metrics)

    return jax.jit(train_step, donate_argnums=0)


def _in_parts(batch: jax.Array, count: int) -> jax.Array:
    """[B, ...] -> [count, B / count, ...], moving no sample between devices: part i has i, i + count, ..."""
    return split_by_sample(batch.reshape(-1, count, *batch.shape[1:]).swapaxes(0, 1), axis=1)


def _joined(parts: jax.Array) -> jax.Array:
    """The inverse of `_in_parts`."""
    return split_by_sample(parts.swapaxes(0, 1).reshape(-1, *parts.shape[2:]))


def _accumulated(sums_of, loss_from, params, parts):
    """Loss and gradient of a batch whose parts [parts, B, ...] come in turn.

    The loss is a function of sums over the batch: a first pass finds its slopes along them, a second one each
    part's gradient. Where the slopes follow from the labels alone, the compiler drops the net from the first.
    """
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(sums_of, params, *_first(parts))
    )

    def add_sums(total, part):
        return jax.tree.map(jnp.add, total, sums_of(params, *part)), None

    slopes = jax.grad(loss_from)(lax.scan(add_sums, zeros, parts)[0])

    def add_gradient(total, part):
        sums, pull = jax.vjp(lambda params: sums_of(params, *part), params)
        return jax.tree.map(jnp.add, total, (sums, pull(slopes)[0])), None

    start = zeros, jax.tree.map(jnp.zeros_like, params)
    (sums, gradient), _ = lax.scan(add_gradient, start, parts)
    return loss_from(sums), gradient


def _first(parts):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), parts)


def make_validation_step(
    net: nnx.Module, *, labels: Labels, batch_dice: bool, accumulate: int = 1
) -> Callable[[nnx.State, Batch], tuple[jax.Array, HardCounts, jax.Array]]:
    """(params, batch) -> loss, voxel counts behind the pseudo-Dice, segmentation [B, X, Y, Z] int16.

    Args:
        net, labels, batch_dice, accumulate: see `make_train_step`.
    """
    graphdef = nnx.graphdef(net)
    counted = {"ignore_label": labels.ignore, "regions": labels.regions}

    @jax.jit
    def validation_step(params, batch):
        params = whole_everywhere(params)

        def validate(part):
            image, label = part
            logits = nnx.merge(graphdef, params)(image)
            full = logits[0] if isinstance(logits, tuple) else logits
            sums = segmentation_sums(logits, label, batch_dice=batch_dice, **counted)
            return sums, hard_counts(full, label, **counted), _segmentation(full, labels)

        in_parts = functools.partial(_in_parts, count=accumulate)
        *of_parts, segmentation = lax.map(validate, jax.tree.map(in_parts, (batch["image"], batch["label"])))
        sums, counts = jax.tree.map(lambda x: jnp.sum(x, axis=0), of_parts)
        loss = loss_of_sums(sums, batch_dice=batch_dice)
        return *whole_everywhere((loss, counts)), _joined(segmentation)

    return validation_step


def _segmentation(logits: jax.Array, labels: Labels) -> jax.Array:
    """The label values that logits [B, X, Y, Z, K] stand for; regions are painted over each other."""
    if not labels.has_regions:
        return jnp.argmax(logits, -1).astype(jnp.int16)
    painted = jnp.zeros(logits.shape[:-1], jnp.int16)
    for region, value in enumerate(labels.regions_class_order):
        painted = jnp.where(logits[..., region] > 0, jnp.int16(value), painted)
    return painted
