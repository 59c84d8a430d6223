"""The one U-Net: residual encoder, Mamba mixers after its stages, residual decoder."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from jaxmamba3d.checks import check_shape, check_that
from jaxmamba3d.config import NetConfig
from jaxmamba3d.nn import Conv3D, ConvNorm, LayerNorm, ResidualBlock, Upsample3D
from jaxmamba3d.nn.conv import activation
from jaxmamba3d.ops.packing import Packing, pack, side_by_side, unpack
from jaxmamba3d.ops.scan_orders import to_tokens, to_volume

MixerFactory = Callable[[int], nnx.Module]
"""Channels of a stage -> a module [B, X, Y, Z, C] -> [B, X, Y, Z, C]."""


class TokenMixer(nnx.Module):
    """A sequence block over a volume's voxels in stored order, behind a LayerNorm.

    [B, X, Y, Z, C] -> [B, X, Y, Z, C]. Source: `MambaLayer` of the authors' code.
    """

    def __init__(self, block: nnx.Module, features: int, *, rngs: nnx.Rngs):
        self.norm = LayerNorm(features, rngs=rngs)
        self.block = block

    def __call__(self, x: jax.Array) -> jax.Array:
        return to_volume(self.block(self.norm(to_tokens(x))), x.shape[1:4])


class UNet3D(nnx.Module):
    """A residual 3D U-Net with a mixer after every encoder stage.

    Args:
        config: the network.
        make_mixer: called with each stage's channels; None builds the plain U-Net.
        mix_skips_only: a mixer's output goes to the decoder alone, and the next stage sees the plain
            convolutions; otherwise it replaces the stage's output.
        rngs: random streams; `params` is used.

    Source: `UNetResEncoder`-style networks of the authors' code, built by their plans.
    """

    def __init__(
        self, config: NetConfig, make_mixer: MixerFactory | None, *, mix_skips_only: bool, rngs: nnx.Rngs
    ):
        dtype = jnp.dtype(config.dtype)
        self.config, self.mix_skips_only = config, mix_skips_only
        features, kernels, strides = config.features, config.kernel_sizes, config.strides
        self.stem = ConvNorm(config.in_channels, features[0], kernels[0], dtype=dtype, rngs=rngs)

        def blocks(in_features, out_features, kernel, stride, count):
            first = ResidualBlock(in_features, out_features, kernel, stride, dtype=dtype, rngs=rngs)
            others = [
                ResidualBlock(out_features, out_features, kernel, dtype=dtype, rngs=rngs)
                for _ in range(count - 1)
            ]
            return nnx.Sequential(first, *others)

        widths = zip((features[0], *features[:-1]), features, strict=True)
        self.encoder = nnx.List(
            blocks(*width, *rest)
            for width, *rest in zip(widths, kernels, strides, config.blocks_per_stage, strict=True)
        )
        self.mixers = nnx.List([] if make_mixer is None else [make_mixer(width) for width in features])

        self.upsamplers, self.decoder, self.heads = nnx.List(), nnx.List(), nnx.List()
        for below, count in zip(
            range(len(features) - 1, 0, -1), config.decoder_blocks_per_stage, strict=True
        ):
            width = features[below - 1]
            self.upsamplers.append(Upsample3D(features[below], width, strides[below], dtype=dtype, rngs=rngs))
            self.decoder.append(blocks(2 * width, width, kernels[below - 1], (1, 1, 1), count))
            self.heads.append(Conv3D(width, config.num_classes, dtype=dtype, rngs=rngs))

    def __call__(self, x: jax.Array) -> tuple[jax.Array, ...] | jax.Array:
        """Logits of images.

        Args:
            x: [B, X, Y, Z, in_channels].

        Returns:
            With deep supervision a tuple, highest resolution first, else the highest resolution alone:
            [B, X / s, Y / s, Z / s, K] in the compute dtype.

        Raises:
            ValueError: x has the wrong shape, or a size does not divide by the strides.
        """
        return self.decode(self.encode(x))

    def decode(self, skips: Sequence[jax.Array]) -> tuple[jax.Array, ...] | jax.Array:
        """Logits from what the encoder hands over; see `encode` and `__call__`."""
        *skips, x = skips
        logits = []
        for upsampler, blocks, head in zip(self.upsamplers, self.decoder, self.heads, strict=True):
            x = blocks(upsampler(x), skips.pop())
            if self.config.deep_supervision or not skips:
                logits.insert(0, _packed(head, x, x.shape[-1]))
        return tuple(logits) if self.config.deep_supervision else logits[0]

    def encode(self, x: jax.Array) -> list[jax.Array]:
        """What the encoder hands to the decoder at each stage, highest resolution first."""
        check_shape("x", x, "[B, X, Y, Z, C]", (None, None, None, None, self.config.in_channels))
        check_that(x.size > 0, "x", "not empty", f"shape {list(x.shape)}")
        for axis, size, stride in zip("XYZ", x.shape[1:4], self.config.total_stride, strict=True):
            wanted = f"divisible by {stride}, the product of the strides {self.config.strides}"
            check_that(size % stride == 0, f"size of x along {axis}", wanted, size)
        x = _packed(self._stem, x.astype(self.config.dtype), self.config.features[0])
        skips = []
        for stage, blocks in enumerate(self.encoder):
            x = blocks(x)
            mixed = self.mixers[stage](x) if self.mixers else x
            skips.append(mixed)
            x = x if self.mix_skips_only else mixed
        return skips

    def _stem(self, x, packing):
        return activation(self.stem(x, packing))


def _packed(layer, x: jax.Array, channels: int) -> jax.Array:
    """layer(x) with as many voxels side by side as suit so many channels."""
    voxels = side_by_side(channels, x.shape[2])
    return unpack(layer(pack(x, voxels), Packing(voxels, voxels)), voxels)
