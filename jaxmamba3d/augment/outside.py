"""What lies outside the body or the volume: label -1 until the end, background from then on."""

import jax
import jax.numpy as jnp

from jaxmamba3d.labels import OUTSIDE


def blank_outside(
    image: jax.Array, label: jax.Array, masked_channels: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Sets the masked channels to 0 where the label is below 0, then label -1 to 0.

    Args:
        image: [X, Y, Z, C].
        label: [X, Y, Z], int.
        masked_channels: channels that were normalised inside the body alone.

    Source: batchgeneratorsv2, transforms/utils/nnunet_masking.py and remove_label.py.
    """
    if masked_channels:
        masked = jnp.isin(jnp.arange(image.shape[-1]), jnp.array(masked_channels))
        image = jnp.where((label < 0)[..., None] & masked, 0, image)
    return image, jnp.where(label == OUTSIDE, 0, label)
