"""Augmentation as functions of a key, for jit on the accelerator."""

from jaxmamba3d.augment.mirroring import mirror

__all__ = ["mirror"]
