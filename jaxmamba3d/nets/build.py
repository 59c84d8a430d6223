"""The paper's networks by name."""

import functools

import jax
from flax import nnx

from jaxmamba3d.config import NetConfig
from jaxmamba3d.nets.unet3d import TokenMixer, UNet3D
from jaxmamba3d.nn import BidirectionalMambaBlock, MambaBlock, MultiOrderMambaBlock


def build_net(config: NetConfig, *, rngs: nnx.Rngs) -> UNet3D:
    """The network that a configuration names, freshly initialised as the authors initialise theirs.

    | name          | mixer of a stage                               | its output goes to        |
    |---------------|------------------------------------------------|---------------------------|
    | segmamba      | LayerNorm, one-direction block                 | next stage and decoder    |
    | bisegmamba    | LayerNorm, bidirectional block                 | next stage and decoder    |
    | segmambaskip  | LayerNorm, bidirectional block                 | decoder alone             |
    | multisegmamba | mean of bidirectional blocks over 4 axis orders | next stage and decoder   |
    | resunet       | none                                           |                           |

    Args:
        config: the network.
        rngs: random streams; `params` is used.

    Returns:
        A module [B, X, Y, Z, in_channels] -> tuple of logits; see `UNet3D`.

    Source: arXiv 2410.15496, section 3; the state size is min(channels, 256), for multisegmamba 64.
    """

    def options(features, largest_state):
        return {
            "d_state": min(features, largest_state),
            "scan_implementation": config.scan_implementation,
            "dtype": config.dtype,
            "remat": config.remat,
            "rngs": rngs,
        }

    def token_mixer(block, features):
        return TokenMixer(block(features, **options(features, 256)), features, rngs=rngs)

    mixers = {
        "segmamba": lambda features: token_mixer(MambaBlock, features),
        "bisegmamba": lambda features: token_mixer(BidirectionalMambaBlock, features),
        "segmambaskip": lambda features: token_mixer(BidirectionalMambaBlock, features),
        "multisegmamba": lambda features: MultiOrderMambaBlock(features, **options(features, 64)),
        "resunet": None,
    }
    return UNet3D(config, mixers[config.name], mix_skips_only=config.name == "segmambaskip", rngs=rngs)


def abstract_net(config: NetConfig) -> UNet3D:
    """The network with shapes in place of parameters, of which nothing is drawn or stored."""
    return nnx.clone(_cached_abstract_net(config))


@functools.cache
def _cached_abstract_net(config: NetConfig) -> UNet3D:
    return nnx.eval_shape(lambda: build_net(config, rngs=_OneKey()))


class _OneKey:
    """In place of `nnx.Rngs`, whose counting takes the longer the more has been traced before."""

    def params(self) -> jax.Array:
        return jax.random.key(0)
