"""Random mirroring."""

import jax
import jax.numpy as jnp


def mirror(
    key: jax.Array, image: jax.Array, label: jax.Array, axes: tuple[int, ...] = (0, 1, 2)
) -> tuple[jax.Array, jax.Array]:
    """Mirrors each sample along each of the axes with probability 1/2, image and label alike.

    Args:
        key: random key; the same key gives the same result on any number of devices.
        image: [B, X, Y, Z, C].
        label: [B, X, Y, Z].
        axes: out of 0 X, 1 Y, 2 Z.

    Returns:
        image and label, mirrored.
    """
    flags = jax.random.bernoulli(key, 0.5, (image.shape[0], 3))
    for axis in axes:
        flag = flags[:, axis].reshape(-1, 1, 1, 1)
        image = jnp.where(flag[..., None], jnp.flip(image, axis + 1), image)
        label = jnp.where(flag, jnp.flip(label, axis + 1), label)
    return image, label
