"""The data of an experiment, checked, planned and preprocessed."""

import contextlib
import logging
from pathlib import Path

from jaxmamba3d.checks import check_that
from jaxmamba3d.config import ExperimentConfig
from jaxmamba3d.data import Workspace, plan_workspace, write_phantom_dataset
from jaxmamba3d.experiment.early_checks import check_early
from jaxmamba3d.files import check_writable
from jaxmamba3d.training import check_path, make_optimizer

logger = logging.getLogger(__name__)


def prepare(config: ExperimentConfig) -> Workspace:
    """Makes the phantoms if asked for, checks and plans the dataset, and preprocesses its cases."""
    data = config.data
    check_writable(config.output, "output")
    check_path(Path(config.output))
    make_optimizer(config.optim, config.train)  # refuses schedules that do not fit the training
    check_that(bool(data.dataset), "data.dataset", "the folder of the dataset", "nothing")
    if data.phantoms is not None and not Path(data.dataset).exists():
        logger.info("%s does not exist: made-up cases (phantoms) are written there", data.dataset)
        with contextlib.suppress(FileExistsError):  # another process was faster
            write_phantom_dataset(data.dataset, data.phantoms)
    if data.source is not None and not Path(data.dataset).is_dir():
        advice = f"name it with --data.dataset, or get it from {data.source}"
        raise FileNotFoundError(f"{data.dataset}: no such dataset folder; {advice}")
    workspace = plan_workspace(
        data.dataset,
        config.work_folder,
        plans_file=data.plans,
        splits_file=data.splits,
        memory_gb=data.memory_gb,
        spacing=data.spacing,
        configuration=data.configuration,
        fold=data.fold,
        processes=data.processes,
    )
    check_early(config, workspace)
    workspace.preprocess(data.configuration, processes=data.processes)
    return workspace
