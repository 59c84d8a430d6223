"""The networks of the paper, and the authors' weights for them."""

from jaxmamba3d.config import NetConfig
from jaxmamba3d.nets.build import abstract_net, build_net
from jaxmamba3d.nets.official_weights import load_official_weights, to_official_weights
from jaxmamba3d.nets.torch_checkpoint import read_torch_checkpoint, read_training_record
from jaxmamba3d.nets.unet3d import UNet3D
from jaxmamba3d.nets.weight_files import read_weights

__all__ = [
    "NetConfig",
    "UNet3D",
    "abstract_net",
    "build_net",
    "load_official_weights",
    "read_torch_checkpoint",
    "read_training_record",
    "read_weights",
    "to_official_weights",
]
