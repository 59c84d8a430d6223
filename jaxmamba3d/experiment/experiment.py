"""An experiment from its data to its scores."""

from jaxmamba3d.config import ExperimentConfig
from jaxmamba3d.evaluation import Evaluation
from jaxmamba3d.experiment.preparation import prepare
from jaxmamba3d.experiment.training import train
from jaxmamba3d.experiment.validation import validate
from jaxmamba3d.run import open_run, start_run
from jaxmamba3d.training import first_process_first, is_first_process


def run_experiment(config: ExperimentConfig) -> Evaluation | None:
    """Prepares the data, trains the fold and scores its validation cases.

    Prepared data and finished epochs of an earlier call are kept.

    Args:
        config: the experiment.

    Returns:
        The scores of the fold's validation cases; None in all but the first of several processes.

    Raises:
        FileNotFoundError, ValueError: data or settings are wrong; nearly all is found before training starts.
        FloatingPointError: the loss is no longer finite.
    """
    with first_process_first():
        workspace = prepare(config)
        run = start_run(config, workspace) if is_first_process() else open_run(config.output)
    train(run, workspace)
    return validate(run, workspace) if is_first_process() else None
