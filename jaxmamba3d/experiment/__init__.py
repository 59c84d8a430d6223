"""The phases of an experiment: prepare, train, predict, score, report."""

from jaxmamba3d.experiment.all_folds import combine_folds
from jaxmamba3d.experiment.experiment import run_experiment
from jaxmamba3d.experiment.imported import import_checkpoint
from jaxmamba3d.experiment.prediction import cases_to_predict, folds_to_predict, predict
from jaxmamba3d.experiment.preparation import prepare
from jaxmamba3d.experiment.report import write_report
from jaxmamba3d.experiment.segmenter import Segmenter
from jaxmamba3d.experiment.summary import fold_summary, write_summary
from jaxmamba3d.experiment.training import train
from jaxmamba3d.experiment.validation import predict_validation_cases, score_validation_cases

__all__ = [
    "Segmenter",
    "cases_to_predict",
    "combine_folds",
    "fold_summary",
    "folds_to_predict",
    "import_checkpoint",
    "predict",
    "predict_validation_cases",
    "prepare",
    "run_experiment",
    "score_validation_cases",
    "train",
    "write_report",
    "write_summary",
]
