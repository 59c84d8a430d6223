"""What is augmented and how far, decided once from the patch size as nnU-Net does."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

from jaxmamba3d.checks import check_axes, check_sizes, check_that
from jaxmamba3d.config import Triple

ANISOTROPY = 3
"""Beyond this ratio of the longest axis to the first, volumes are rotated and scaled slice by slice."""

TILT, IN_PLANE_TURN = math.radians(30), math.radians(180)
LOWEST_PLANNED_ZOOM = 0.85


@dataclass(frozen=True)
class AugmentationPlan:
    """How training patches are augmented; hashable, hence a static argument under `jax.jit`.

    Args:
        patch_size: voxels (X, Y, Z) that the net sees.
        mirror_axes: axes (0 X, 1 Y, 2 Z) along which patches are mirrored at random; () for none.
        masked_channels: image channels that are set to 0 outside the body, because they were normalised
            inside it alone.
        rotate_and_scale: turn and scale patches; patches must then come in `initial_patch_size`.
        vary_intensities: noise, blur, brightness, contrast, low resolution and gamma.

    Source: nnU-Net v2, nnUNetTrainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size.
    """

    patch_size: Triple
    mirror_axes: tuple[int, ...] = (0, 1, 2)
    masked_channels: tuple[int, ...] = ()
    rotate_and_scale: bool = True
    vary_intensities: bool = True

    def __post_init__(self):
        for field in ("patch_size", "mirror_axes", "masked_channels"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        check_sizes("patch_size", self.patch_size)
        check_axes("mirror_axes", self.mirror_axes)
        valid = all(isinstance(n, Integral) and n >= 0 for n in self.masked_channels)
        check_that(valid, "masked_channels", "whole numbers >= 0", self.masked_channels)

    @classmethod
    def for_patches(
        cls, patch_size: Sequence[int], use_mask_for_norm: Sequence[bool] = (), **options
    ) -> "AugmentationPlan":
        """The plan of a configuration of nnU-Net's plans.

        Args:
            patch_size: voxels (X, Y, Z) that the net sees.
            use_mask_for_norm: for each image channel, whether it was normalised inside the body alone.
            **options: the other fields.
        """
        masked = tuple(channel for channel, used in enumerate(use_mask_for_norm) if used)
        return cls(patch_size, masked_channels=masked, **options)

    @property
    def slice_by_slice(self) -> bool:
        """Whether the first axis is so short that patches turn and scale in the other two alone."""
        return max(self.patch_size) / self.patch_size[0] > ANISOTROPY

    @property
    def largest_angle(self) -> float:
        """Radians that patches turn by at most, either way, about each axis (slice by slice: X alone)."""
        return IN_PLANE_TURN if self.slice_by_slice else TILT

    @property
    def initial_patch_size(self) -> Triple:
        """Voxels of the patches that `augment` takes, in order to have something to show in the corners."""
        if not self.rotate_and_scale:
            return self.patch_size
        needed = initial_patch_size(self.patch_size, self.largest_angle)
        return (self.patch_size[0], *needed[1:]) if self.slice_by_slice else needed


def initial_patch_size(patch_size: Sequence[int], largest_angle: float) -> Triple:
    """The box that holds a patch turned about any one axis, enlarged by 1 / 0.85, rounded down.

    Scaling goes beyond what the box allows for: nnU-Net's numbers are kept as they are.

    Args:
        patch_size: voxels (X, Y, Z) after augmentation.
        largest_angle: radians; turns beyond 90 degrees need no more room than 90.

    Source: nnU-Net v2, training/data_augmentation/compute_initial_patch_size.py.
    """
    x, y, z = patch_size
    angle = min(largest_angle, math.pi / 2)
    cos, sin = math.cos(angle), math.sin(angle)
    box = (
        max(x, x * cos + y * sin, abs(x * cos - z * sin)),
        max(y, y * cos + z * sin, abs(y * cos - x * sin)),
        max(z, z * cos + x * sin, abs(z * cos - y * sin)),
    )
    return tuple(int(length / LOWEST_PLANNED_ZOOM) for length in box)
