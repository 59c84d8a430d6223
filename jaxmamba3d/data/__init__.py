"""Datasets: reading, checks, plans, preprocessing and its inverse; without jax.

The input pipeline is in `jaxmamba3d.data.pipeline` and is not imported here, because Grain imports jax, which
worker processes must not.
"""

from jaxmamba3d.data.cases import Case, Dataset
from jaxmamba3d.data.dataset import (
    Description,
    description_from_json,
    find_images,
    is_dataset,
    read_dataset,
    read_description,
    read_labels,
)
from jaxmamba3d.data.ensemble import ensemble_folders
from jaxmamba3d.data.export import export_segmentation
from jaxmamba3d.data.fingerprint import Fingerprint, compute_fingerprint, load_fingerprint, save_fingerprint
from jaxmamba3d.data.inspection import check_dataset, check_images
from jaxmamba3d.data.label_values import read_label_values
from jaxmamba3d.data.nifti import Volume, read_label, read_volume, write_segmentation
from jaxmamba3d.data.phantoms import write_phantom_dataset
from jaxmamba3d.data.planning import plan_dataset
from jaxmamba3d.data.plans import Configuration, Plans, load_plans, plans_from_json, save_plans
from jaxmamba3d.data.preprocessed import preprocess_dataset
from jaxmamba3d.data.preprocessing import PreprocessedCase, preprocess_case, preprocess_volume
from jaxmamba3d.data.splits import Split, cases_in_folds, load_splits, make_splits
from jaxmamba3d.data.workspace import Workspace, open_workspace, plan_workspace

__all__ = [
    "Case",
    "Configuration",
    "Dataset",
    "Description",
    "Fingerprint",
    "Plans",
    "PreprocessedCase",
    "Split",
    "Volume",
    "Workspace",
    "cases_in_folds",
    "check_dataset",
    "check_images",
    "compute_fingerprint",
    "description_from_json",
    "ensemble_folders",
    "export_segmentation",
    "find_images",
    "is_dataset",
    "load_fingerprint",
    "load_plans",
    "load_splits",
    "make_splits",
    "open_workspace",
    "plan_dataset",
    "plan_workspace",
    "plans_from_json",
    "preprocess_case",
    "preprocess_dataset",
    "preprocess_volume",
    "read_dataset",
    "read_description",
    "read_label",
    "read_label_values",
    "read_labels",
    "read_volume",
    "save_fingerprint",
    "save_plans",
    "write_phantom_dataset",
    "write_segmentation",
]
