"""One small dataset and one finished run on it, for all tests of a worker."""

import pytest
from small_datasets import write_nnunet
from small_runs import all_folds_config, small_config

from jaxmamba3d import experiment
from jaxmamba3d.run import open_run


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    return write_nnunet(tmp_path_factory.mktemp("data") / "Dataset001_Small", channels=2)


@pytest.fixture(scope="session")
def finished(dataset, tmp_path_factory):
    """A run from the dataset to its scores."""
    config = small_config(dataset, tmp_path_factory.mktemp("run") / "small")
    scores = experiment.run_experiment(config)
    return open_run(config.output), scores


@pytest.fixture(scope="session")
def finished_folds(dataset, tmp_path_factory):
    """A run of all folds, of which there are two."""
    config = all_folds_config(dataset, tmp_path_factory.mktemp("folds"))
    scores = experiment.run_experiment(config)
    return open_run(config.output), scores
