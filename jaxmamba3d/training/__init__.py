"""Training: mesh, optimizer, steps, loop, checkpoints and what people look at meanwhile."""

from jaxmamba3d.training.checkpoint import SETTINGS, Checkpoints
from jaxmamba3d.training.checkpoint_folder import (
    CHECKPOINTS,
    check_path,
    has_checkpoint,
    is_imported,
    read_saved,
    restore_params,
    save_params,
)
from jaxmamba3d.training.compilation import compile_fitting, keep_compiled_programs, memory_limit
from jaxmamba3d.training.loop import check_can_go_on, train_fold
from jaxmamba3d.training.mesh import devices_for, use_all_cores
from jaxmamba3d.training.optimizer import learning_rate_at, make_optimizer
from jaxmamba3d.training.processes import (
    all_leave_together,
    is_main_process,
    join_processes,
    main_process_first,
)
from jaxmamba3d.training.task import Task

__all__ = [
    "CHECKPOINTS",
    "SETTINGS",
    "Checkpoints",
    "Task",
    "all_leave_together",
    "check_can_go_on",
    "check_path",
    "compile_fitting",
    "devices_for",
    "has_checkpoint",
    "is_imported",
    "is_main_process",
    "join_processes",
    "keep_compiled_programs",
    "learning_rate_at",
    "main_process_first",
    "make_optimizer",
    "memory_limit",
    "read_saved",
    "restore_params",
    "save_params",
    "train_fold",
    "use_all_cores",
]
