"""What training steps learn, and from batches of which shape."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmamba3d.augment import AugmentationPlan
from jaxmamba3d.labels import Labels
from jaxmamba3d.ops.backend import BATCH_AXES


@dataclass(frozen=True)
class Task:
    """The part of an experiment that a training step is compiled for, in addition to net and optimizer.

    Args:
        batch_size: samples B of the global batch.
        in_channels: of the images.
        labels: what label values mean.
        batch_dice: see `segmentation_loss`.
        augmentation: of the training batches, whose patches are of its `initial_patch_size`.
    """

    batch_size: int
    in_channels: int
    labels: Labels
    batch_dice: bool
    augmentation: AugmentationPlan

    def training_batch(self, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of a batch shared out over a mesh: image [B, X, Y, Z, C] and label [B, X, Y, Z]."""
        return self._batch(mesh, self.augmentation.initial_patch_size)

    def validation_batch(self, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
        """Likewise, of the patches that the net sees."""
        return self._batch(mesh, self.augmentation.patch_size)

    def _batch(self, mesh, patch_size):
        sharding = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
        shape = (self.batch_size, *patch_size)
        return {
            "image": jax.ShapeDtypeStruct((*shape, self.in_channels), jnp.float32, sharding=sharding),
            "label": jax.ShapeDtypeStruct(shape, jnp.int16, sharding=sharding),
        }
