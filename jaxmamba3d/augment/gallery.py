"""Each effect of the augmentation by itself at the ends of its range, to be looked at."""

import functools
import math

import jax
import jax.numpy as jnp

from jaxmamba3d.augment import blur, intensity, noise, resolution, spatial
from jaxmamba3d.augment.outside import blank_outside
from jaxmamba3d.augment.pipeline import augment, intensity_changes
from jaxmamba3d.augment.plan import AugmentationPlan

Patch = tuple[jax.Array, jax.Array]


def effects_alone(image: jax.Array, label: jax.Array, plan: AugmentationPlan) -> dict[str, Patch]:
    """One patch without augmentation, under each effect alone as strong as it gets, and under chance.

    Args:
        image: [*initial_patch_size, C] float32.
        label: [*initial_patch_size], signed integers.
        plan: see `augment`.

    Returns:
        title -> image [*patch_size, C] and label [*patch_size]; the first is the patch as it is.
    """
    placed = jax.jit(functools.partial(spatial.place, plan=plan))
    plain = spatial.central_crop(image, plan.patch_size), spatial.central_crop(label, plan.patch_size)
    patches = {"as it is": plain}
    if plan.rotate_and_scale:
        for title, placement in _placements(plan).items():
            patches[title] = placed(placement, image, label)
    if plan.vary_intensities:
        changes = intensity_changes(plan)
        for name, strengths in _strengths().items():
            change = jax.jit(jax.vmap(changes[name], in_axes=(-1, None), out_axes=-1))
            if name == "noise":
                change = jax.jit(functools.partial(_noisy, key=jax.random.key(0)))
            for words, strength in strengths.items():
                patches[words] = change(plain[0], jnp.asarray(strength)), plain[1]
    patches = {title: blank_outside(*patch, plan.masked_channels) for title, patch in patches.items()}
    chance = jax.jit(functools.partial(augment, plan=plan))
    for n in range(1, 5):
        batch = chance(jax.random.key(n), image[None], label[None])
        patches[f"by chance, {n}"] = batch[0][0], batch[1][0]
    return patches


def _placements(plan: AugmentationPlan) -> dict[str, spatial.Placement]:
    # A half turn in plane would show no interpolation.
    angle = math.radians(60) if plan.slice_by_slice else plan.largest_angle
    axes = {0: "X"} if plan.slice_by_slice else {0: "X", 1: "Y", 2: "Z"}
    yes, still = jnp.array(True), jnp.zeros(3)
    degrees = round(math.degrees(angle))
    placements = {
        f"turned by {degrees}° about {name}": spatial.Placement(yes, still.at[axis].set(angle), jnp.ones(3))
        for axis, name in axes.items()
    }
    for scale in spatial.SCALES:
        scales = jnp.full(3, scale)
        if plan.slice_by_slice:
            scales = scales.at[0].set(1)
        title = f"zoomed {'in' if scale < 1 else 'out'}, scale {scale}"
        placements[title] = spatial.Placement(yes, still, scales)
    return placements


def _strengths() -> dict[str, dict[str, float | tuple[float, ...]]]:
    """Effect -> title -> strength of one channel, the same for all."""
    factors = {
        "brightness": ("brightness", intensity.BRIGHTNESS_FACTORS),
        "contrast": ("contrast", intensity.CONTRAST_FACTORS),
        "gamma": ("gamma", intensity.GAMMA_EXPONENTS),
        "inverted_gamma": ("inverted gamma", intensity.GAMMA_EXPONENTS),
    }
    widest = blur.SIGMAS[1]
    return {
        "noise": {f"noise of deviation {noise.DEVIATIONS[1]}": noise.DEVIATIONS[1]},
        "blur": {f"blur of {widest} voxels": (widest,) * 3},
        "low_resolution": {f"resolution {resolution.ZOOMS[0]}": resolution.ZOOMS[0]},
    } | {name: {f"{words} {f}": f for f in bounds} for name, (words, bounds) in factors.items()}


def _noisy(image: jax.Array, deviation: jax.Array, key: jax.Array) -> jax.Array:
    keys = jax.random.split(key, image.shape[-1])
    return jax.vmap(noise.add_noise, in_axes=(-1, 0, None), out_axes=-1)(image, keys, deviation)
