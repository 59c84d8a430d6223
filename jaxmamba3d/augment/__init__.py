"""Augmentation as functions of a key, for jit on the accelerator."""

from jaxmamba3d.augment.pipeline import augment
from jaxmamba3d.augment.plan import AugmentationPlan

__all__ = ["AugmentationPlan", "augment"]
