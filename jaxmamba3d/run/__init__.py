"""The run folder: its config, net and plans, and its folds."""

from jaxmamba3d.run.beginning import describe_run, import_weights, resolve_net, start_run
from jaxmamba3d.run.folder import POSTPROCESSING, Run, open_run, run_lock

__all__ = [
    "POSTPROCESSING",
    "Run",
    "describe_run",
    "import_weights",
    "open_run",
    "resolve_net",
    "run_lock",
    "start_run",
]
