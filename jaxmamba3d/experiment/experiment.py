"""An experiment from its data to its scores."""

from jaxmamba3d.config import ExperimentConfig
from jaxmamba3d.evaluation import Evaluation
from jaxmamba3d.experiment.preparation import prepare
from jaxmamba3d.experiment.training import train
from jaxmamba3d.experiment.validation import validate
from jaxmamba3d.run import start_run


def run_experiment(config: ExperimentConfig) -> Evaluation:
    """Prepares the data, trains the fold and scores its validation cases.

    Prepared data and finished epochs of an earlier call are kept.

    Args:
        config: the experiment.

    Returns:
        The scores of the fold's validation cases.

    Raises:
        FileNotFoundError, ValueError: data or settings are wrong; nearly all is found before training starts.
        FloatingPointError: the loss is no longer finite.
    """
    workspace = prepare(config)
    run = start_run(config, workspace)
    train(run, workspace)
    return validate(run, workspace)
