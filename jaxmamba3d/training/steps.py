"""The jit-ed training and validation steps, and the state they pass on."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxmamba3d.augment import mirror
from jaxmamba3d.labels import Labels
from jaxmamba3d.losses import HardCounts, hard_counts, segmentation_loss

Batch = dict[str, jax.Array]
"""image [B, X, Y, Z, C] float32 and label [B, X, Y, Z] int."""


class TrainState(NamedTuple):
    """All that a step changes. Random numbers follow from the seed and the step, so none are kept."""

    params: nnx.State
    optimizer: optax.OptState
    step: jax.Array


def init_state(net: nnx.Module, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step.

    Args:
        net: freshly initialised; its parameters are the state's.
        optimizer: see `make_optimizer`.
    """
    params = nnx.state(net, nnx.Param)
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def make_train_step(
    net: nnx.Module,
    optimizer: optax.GradientTransformation,
    *,
    labels: Labels,
    batch_dice: bool,
    mirror_axes: tuple[int, ...],
    seed: int,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """One optimizer step on an augmented batch: (state, batch) -> (state, {loss, gradient_norm}).

    The batch may be sharded over devices; sums over it are then global. The old state's memory is reused.

    Args:
        net: [B, X, Y, Z, C] -> logits, or a tuple of them; its parameters are taken from the state.
        optimizer: see `make_optimizer`.
        labels: what label values mean.
        batch_dice: see `segmentation_loss`.
        mirror_axes: see `mirror`.
        seed: of the augmentation, together with the state's step.
    """
    graphdef = nnx.graphdef(net)
    target = {"batch_dice": batch_dice, "ignore_label": labels.ignore, "regions": labels.regions}

    def loss_of(params, image, label):
        logits = nnx.merge(graphdef, params)(image)
        return segmentation_loss(logits, label, **target)

    def train_step(state: TrainState, batch: Batch):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        image, label = mirror(key, batch["image"], batch["label"], mirror_axes)
        loss, gradients = jax.value_and_grad(loss_of)(state.params, image, label)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, "gradient_norm": optax.tree.norm(gradients)}
        return TrainState(params, optimizer_state, state.step + 1), metrics

    return jax.jit(train_step, donate_argnums=0)


def make_validation_step(
    net: nnx.Module, *, labels: Labels, batch_dice: bool
) -> Callable[[nnx.State, Batch], tuple[jax.Array, HardCounts]]:
    """(params, batch) -> loss and the voxel counts behind the pseudo-Dice, on the batch as it is.

    Args:
        net, labels, batch_dice: see `make_train_step`.
    """
    graphdef = nnx.graphdef(net)
    counted = {"ignore_label": labels.ignore, "regions": labels.regions}

    @jax.jit
    def validation_step(params, batch):
        logits = nnx.merge(graphdef, params)(batch["image"])
        full = logits[0] if isinstance(logits, tuple) else logits
        label = batch["label"]
        loss = segmentation_loss(logits, label, batch_dice=batch_dice, **counted)
        return loss, hard_counts(full, label, **counted)

    return validation_step
