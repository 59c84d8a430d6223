"""Training: mesh, optimizer, steps, loop, checkpoints and what people look at meanwhile."""

from jaxmamba3d.training.checkpoint import Checkpoints, has_checkpoint, restore_params, save_params
from jaxmamba3d.training.loop import train_fold
from jaxmamba3d.training.mesh import use_all_cores
from jaxmamba3d.training.optimizer import learning_rate_at, make_optimizer

__all__ = [
    "Checkpoints",
    "has_checkpoint",
    "learning_rate_at",
    "make_optimizer",
    "restore_params",
    "save_params",
    "train_fold",
    "use_all_cores",
]
