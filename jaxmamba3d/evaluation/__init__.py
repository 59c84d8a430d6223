"""Scores and pictures of segmentations; runs on the host alone."""

from jaxmamba3d.evaluation.comparison import compare_models, row_of
from jaxmamba3d.evaluation.comparison_cases import read_comparison_cases, telling_cases
from jaxmamba3d.evaluation.error_maps import ComparisonCase, comparison_figure
from jaxmamba3d.evaluation.figures import OverlayCase, overlay_figure
from jaxmamba3d.evaluation.metrics import dice, hausdorff95, normalized_surface_distance, surface_distances
from jaxmamba3d.evaluation.model_tables import cases_table, quoted_metrics, structures_table
from jaxmamba3d.evaluation.postprocessing import (
    Postprocessing,
    apply_postprocessing,
    choose_postprocessing,
    write_postprocessed,
)
from jaxmamba3d.evaluation.protocols import PROTOCOLS, Protocol, dataset_protocol, get_protocol
from jaxmamba3d.evaluation.report import evaluate_folders, evaluate_pairs, evaluate_together
from jaxmamba3d.evaluation.scored_models import (
    POSTPROCESSED,
    SCORES,
    VALIDATION,
    ScoredModel,
    comparable,
    find_models,
    read_model,
)
from jaxmamba3d.evaluation.scoring import Score, score_case
from jaxmamba3d.evaluation.segmentations import Pair
from jaxmamba3d.evaluation.summary import Evaluation, Statistic
from jaxmamba3d.evaluation.summary_files import SUMMARY, conventions_of, read_evaluation
from jaxmamba3d.evaluation.tables import Column, Number, Table, Words

__all__ = [
    "POSTPROCESSED",
    "PROTOCOLS",
    "SCORES",
    "SUMMARY",
    "VALIDATION",
    "Column",
    "ComparisonCase",
    "Evaluation",
    "Number",
    "OverlayCase",
    "Pair",
    "Postprocessing",
    "Protocol",
    "Score",
    "ScoredModel",
    "Statistic",
    "Table",
    "Words",
    "apply_postprocessing",
    "cases_table",
    "choose_postprocessing",
    "comparable",
    "compare_models",
    "comparison_figure",
    "conventions_of",
    "dataset_protocol",
    "dice",
    "evaluate_folders",
    "evaluate_pairs",
    "evaluate_together",
    "find_models",
    "get_protocol",
    "hausdorff95",
    "normalized_surface_distance",
    "overlay_figure",
    "quoted_metrics",
    "read_comparison_cases",
    "read_evaluation",
    "read_model",
    "row_of",
    "score_case",
    "structures_table",
    "surface_distances",
    "telling_cases",
    "write_postprocessed",
]
