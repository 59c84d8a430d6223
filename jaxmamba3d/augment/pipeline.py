"""nnU-Net's augmentation of training patches, from a key, on the accelerator."""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from jaxmamba3d.augment.blur import blur, draw_blur
from jaxmamba3d.augment.draws import NUMBERS_A_CHANNEL, Effect
from jaxmamba3d.augment.intensity import (
    apply_gamma,
    apply_inverted_gamma,
    brighten,
    change_contrast,
    draw_brightness,
    draw_contrast,
    draw_gamma,
    draw_inverted_gamma,
)
from jaxmamba3d.augment.mirroring import draw_mirroring, flip
from jaxmamba3d.augment.noise import add_noise, draw_noise
from jaxmamba3d.augment.outside import blank_outside
from jaxmamba3d.augment.plan import AugmentationPlan
from jaxmamba3d.augment.resolution import draw_low_resolution, lower_resolution
from jaxmamba3d.augment.spatial import Placement, draw_placement, place
from jaxmamba3d.checks import check_shape, check_that

EFFECTS = ("noise", "blur", "brightness", "contrast", "low_resolution", "inverted_gamma", "gamma")
"""What happens to intensities, in this order."""


class Draw(NamedTuple):
    """All that was drawn for one sample.

    Args:
        placement: rotation and scaling.
        effects: by the names in `EFFECTS`.
        mirrored: bool [number of mirror axes].
    """

    placement: Placement
    effects: dict[str, Effect]
    mirrored: jax.Array


def augment(
    key: jax.Array,
    image: jax.Array,
    label: jax.Array,
    plan: AugmentationPlan,
    *,
    batch_axes: tuple[str, ...] = (),
) -> tuple[jax.Array, jax.Array]:
    """Augments a batch of initial patches into patches for the net.

    In this order, each by chance: rotation and scaling, then the crop; Gaussian noise; Gaussian blur;
    brightness; contrast; low resolution; gamma of the inverted image; gamma; mirroring. Last, masked channels
    are set to 0 outside the body, and label -1 to 0.

    Args:
        key: random key. Sample i depends on the key and i alone, not on the batch or the devices.
        image: [B, *initial_patch_size, C] float32.
        label: [B, *initial_patch_size], signed integers; -1 outside the body and the volume.
        plan: what is done and how far; static under `jax.jit`.
        batch_axes: the axes of the mesh (`jax.set_mesh`) over which the batch is split; each device then
            augments its own samples. (): no mesh.

    Returns:
        image [B, *patch_size, C] float32 and label [B, *patch_size].

    Numerics: float32. Samples are augmented in turn, so that what is not drawn costs nothing (a batch at once
        would compute everything for everyone and select), and memory does not grow with the batch.

    Raises:
        ValueError: the patches are not of the plan's initial size, or a masked channel is not there.

    Source: nnU-Net v2, nnUNetTrainer.get_training_transforms, on batchgeneratorsv2.
    """
    batch, channels = image.shape[0], image.shape[-1]
    size = plan.initial_patch_size
    check_shape("image", image, "[B, *initial_patch_size, C]", (batch, *size, channels))
    check_shape("label", label, "[B, *initial_patch_size]", (batch, *size))
    masked = all(channel < channels for channel in plan.masked_channels)
    check_that(masked, "plan.masked_channels", f"below the image's {channels} channels", plan.masked_channels)
    check_that(jnp.issubdtype(label.dtype, jnp.signedinteger), "label", "signed integers", label.dtype)

    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(batch))

    def augment_all(keys, image, label):
        draws = jax.vmap(functools.partial(draw, channels=channels, plan=plan))(keys)
        return lax.map(lambda sample: apply(*sample, plan), (draws, image.astype(jnp.float32), label))

    if batch_axes:
        spec = PartitionSpec(batch_axes)
        augment_all = jax.shard_map(
            augment_all, in_specs=spec, out_specs=spec, axis_names=set(batch_axes), check_vma=False
        )
    return augment_all(keys, image, label)


def draw(key: jax.Array, channels: int, plan: AugmentationPlan) -> Draw:
    """Draws what happens to one sample.

    Args:
        key: of the sample.
        channels: of the image.
        plan: see `augment`.
    """
    chances, noise = jax.random.split(key)
    sizes = (6, *[channels * NUMBERS_A_CHANNEL] * len(EFFECTS), len(plan.mirror_axes))
    numbers = jax.random.uniform(chances, (sum(sizes),), jnp.float32)
    placement, *others, mirroring = jnp.split(numbers, list(itertools.accumulate(sizes))[:-1])
    own = dict(zip(EFFECTS, (part.reshape(channels, NUMBERS_A_CHANNEL) for part in others), strict=True))
    effects = {
        "noise": draw_noise(own["noise"], noise),
        "blur": draw_blur(own["blur"]),
        "brightness": draw_brightness(own["brightness"]),
        "contrast": draw_contrast(own["contrast"]),
        "low_resolution": draw_low_resolution(own["low_resolution"]),
        "inverted_gamma": draw_inverted_gamma(own["inverted_gamma"]),
        "gamma": draw_gamma(own["gamma"]),
    }
    return Draw(draw_placement(placement, plan), effects, draw_mirroring(mirroring))


def apply(
    drawn: Draw, image: jax.Array, label: jax.Array, plan: AugmentationPlan
) -> tuple[jax.Array, jax.Array]:
    """Does to one sample what was drawn for it.

    Args:
        drawn: see `draw`.
        image: [*initial_patch_size, C] float32.
        label: [*initial_patch_size], int.
        plan: see `augment`.

    Returns:
        image [*patch_size, C] and label [*patch_size].
    """
    image, label = place(drawn.placement, image, label, plan)
    if plan.vary_intensities:
        # A channel is a whole volume to every effect: channels first, [C, X, Y, Z], while they last.
        volumes = jnp.moveaxis(image, -1, 0)
        changes = intensity_changes(plan)
        for name in EFFECTS:
            change, (applied, strength) = changes[name], drawn.effects[name]
            # Channels in turn, for those that keep their resolution or are not blurred cost nothing then.
            changed = functools.partial(_channel_by_channel, change)
            volumes = lax.cond(applied, changed, lambda volumes, *_: volumes, volumes, *strength)
        image = jnp.moveaxis(volumes, 0, -1)
    image, label = flip(drawn.mirrored, (image, label), plan.mirror_axes)
    return blank_outside(image, label, plan.masked_channels)


def _channel_by_channel(change, volumes: jax.Array, *strength: jax.Array) -> jax.Array:
    return lax.map(lambda channel: change(*channel), (volumes, *strength))


def intensity_changes(plan: AugmentationPlan) -> dict[str, Callable[..., jax.Array]]:
    """What each of `EFFECTS` does to one channel [X, Y, Z], given that channel's strength."""
    return {
        "noise": add_noise,
        "blur": blur,
        "brightness": brighten,
        "contrast": change_contrast,
        "low_resolution": functools.partial(lower_resolution, within_slices=plan.slice_by_slice),
        "inverted_gamma": apply_inverted_gamma,
        "gamma": apply_gamma,
    }
