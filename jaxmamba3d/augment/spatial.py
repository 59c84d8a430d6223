"""Rotation and scaling about the centre of a patch, and the crop to its final size."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxmamba3d.augment.draws import between
from jaxmamba3d.augment.interpolation import resample_affine
from jaxmamba3d.augment.plan import AugmentationPlan
from jaxmamba3d.config import Triple

ROTATION_PROBABILITY = 0.2
SCALING_PROBABILITY, SCALES = 0.2, (0.7, 1.4)


class Placement(NamedTuple):
    """Where the final patch lies in the initial one.

    Args:
        moved: bool [], False: it is the central crop as it is.
        angles: [3], radians about X, Y and Z.
        scales: [3], voxels of the initial patch for one of the final patch: above 1 objects get smaller.
    """

    moved: jax.Array
    angles: jax.Array
    scales: jax.Array


def draw_placement(numbers: jax.Array, plan: AugmentationPlan) -> Placement:
    """Turned with probability 0.2 about every axis, scaled with probability 0.2 by one factor for all axes.

    Args:
        numbers: [6], uniform in [0, 1).
        plan: says how far patches turn, and whether only in their slices.

    Source: batchgeneratorsv2, transforms/spatial/spatial.py, with nnUNetTrainer's settings.
    """
    turned, scaled = numbers[0] < ROTATION_PROBABILITY, numbers[1] < SCALING_PROBABILITY
    angles = between(numbers[2:5], (-plan.largest_angle, plan.largest_angle))
    scales = jnp.broadcast_to(between(numbers[5], SCALES), (3,))
    if plan.slice_by_slice:
        angles = angles.at[1:].set(0)
        scales = scales.at[0].set(1)
    return Placement(turned | scaled, jnp.where(turned, angles, 0), jnp.where(scaled, scales, 1))


def affine_matrix(angles: jax.Array, scales: jax.Array) -> jax.Array:
    """Rz Ry Rx diag(scales) [3, 3]: offsets in the initial patch from offsets in the final one (voxels)."""
    (cos_x, cos_y, cos_z), (sin_x, sin_y, sin_z) = jnp.cos(angles), jnp.sin(angles)
    about_x = jnp.array([[1, 0, 0], [0, cos_x, -sin_x], [0, sin_x, cos_x]])
    about_y = jnp.array([[cos_y, 0, sin_y], [0, 1, 0], [-sin_y, 0, cos_y]])
    about_z = jnp.array([[cos_z, -sin_z, 0], [sin_z, cos_z, 0], [0, 0, 1]])
    with jax.default_matmul_precision("highest"):
        return about_z @ about_y @ about_x * scales


def place(
    placement: Placement, image: jax.Array, label: jax.Array, plan: AugmentationPlan
) -> tuple[jax.Array, jax.Array]:
    """The final patch of an initial one: interpolated where it was turned or scaled, else cropped.

    Args:
        placement: see `draw_placement`.
        image: [*initial_patch_size, C] float32.
        label: [*initial_patch_size], int.
        plan: the patch sizes.

    Returns:
        image [*patch_size, C] and label [*patch_size].
    """

    def interpolated(image, label):
        matrix = affine_matrix(placement.angles, placement.scales)
        return resample_affine(image, label, matrix, plan.patch_size, within_slices=plan.slice_by_slice)

    def cropped(image, label):
        return central_crop(image, plan.patch_size), central_crop(label, plan.patch_size)

    if not plan.rotate_and_scale:
        return cropped(image, label)
    return lax.cond(placement.moved, interpolated, cropped, image, label)


def central_crop(array: jax.Array, size: Triple) -> jax.Array:
    """The middle [*size, ...] of an array [X, Y, Z, ...].

    Source: batchgeneratorsv2, transforms/utils/cropping.py, `center_crop`.
    """
    for axis, length in enumerate(size):
        start = array.shape[axis] // 2 - length // 2
        array = lax.slice_in_dim(array, start, start + length, axis=axis)
    return array
