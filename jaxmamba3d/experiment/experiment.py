"""An experiment from its data to its scores."""

import contextlib
import gc
import logging

import jax

from jaxmamba3d.config import ExperimentConfig
from jaxmamba3d.evaluation import Evaluation
from jaxmamba3d.experiment.all_folds import combine_folds
from jaxmamba3d.experiment.preparation import prepare
from jaxmamba3d.experiment.training import train
from jaxmamba3d.experiment.validation import predict_validation_cases, score_validation_cases
from jaxmamba3d.run import open_run, run_lock, start_run
from jaxmamba3d.training import all_leave_together, is_main_process, main_process_first

logger = logging.getLogger(__name__)


def run_experiment(config: ExperimentConfig) -> Evaluation | None:
    """Prepares the data, trains a fold or all of them, and scores their validation cases.

    Prepared data, finished epochs and predictions of an earlier call are kept. Several processes train and
    predict together; when all folds are done, the first one scores them alone.

    Args:
        config: the experiment.

    Returns:
        The scores of the fold's validation cases, or of all folds'; None in all but the first of several
        processes.

    Raises:
        FileNotFoundError, ValueError: data or settings are wrong; nearly all is found before training starts.
        FloatingPointError: the loss is no longer finite.
    """
    scores = {}
    with contextlib.ExitStack() as locks:
        with main_process_first():
            workspace = prepare(config)
            run = start_run(config, workspace, locks) if is_main_process() else open_run(config.output)
        folds = workspace.folds(config.data.fold)
        for fold in folds:
            if len(folds) > 1:
                logger.info("fold %d, of 0 to %d", fold, folds[-1])
            with main_process_first():  # training must not wait for processes that still do something else
                if is_main_process() and fold != folds[0]:
                    locks.enter_context(run.fold_lock(fold))
            train(run, workspace, fold)
            with all_leave_together():  # whatever happens to one, the others finish their share
                predict_validation_cases(run, workspace, fold)
            if jax.process_count() == 1:
                scores[fold] = score_validation_cases(run, workspace, fold)
            gc.collect()  # arrays that only a cycle still holds would stay on the device
        with all_leave_together():
            if not is_main_process():
                return None
            for fold in folds:
                if fold not in scores:
                    scores[fold] = score_validation_cases(run, workspace, fold)
            with run_lock(run.folder):
                together = combine_folds(run, workspace)
    return together if config.data.fold == "all" else scores[config.data.fold]
