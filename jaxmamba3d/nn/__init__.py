"""Flax NNX modules, channels last; each can be used alone."""

from jaxmamba3d.nn.conv import Conv3D, ConvNorm, ResidualBlock, Upsample3D
from jaxmamba3d.nn.directional import BidirectionalMambaBlock, MultiOrderMambaBlock
from jaxmamba3d.nn.mamba import Mamba, MambaBlock
from jaxmamba3d.nn.norm import InstanceNorm, LayerNorm

__all__ = [
    "BidirectionalMambaBlock",
    "Conv3D",
    "ConvNorm",
    "InstanceNorm",
    "LayerNorm",
    "Mamba",
    "MambaBlock",
    "MultiOrderMambaBlock",
    "ResidualBlock",
    "Upsample3D",
]
