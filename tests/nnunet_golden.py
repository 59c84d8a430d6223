"""What nnU-Net itself made of four small datasets: plans, preprocessed cases, exported predictions.

The smaller files are in tests/golden/nnunet; the rest, and all that shows real patients, is looked for in
`../golden/nnunet` as seen from the folder of real data.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from golden_data import GOLDEN
from real_data import real_dataset

PREPROCESSED = (
    ("hippo", "hippocampus_001"),
    ("hippo", "hippocampus_087"),
    ("ct", "ct_a"),
    ("ct", "ct_b"),
    ("ctiso", "iso_a"),
    ("ctiso", "iso_b"),
    ("mrmask", "mr_a"),
    ("mrmask", "mr_b"),
)
CHANNELS = {"ct": 1, "ctiso": 1, "mrmask": 2}


def recorded(name: str) -> Path:
    """A recorded file, such as ct/nnUNetPlans.json; skips the test where it is absent."""
    if (GOLDEN / "nnunet" / name).exists():
        return GOLDEN / "nnunet" / name
    beside = real_dataset(".").parent / "golden" / "nnunet" / name
    if beside.exists():
        return beside
    pytest.skip(f"recorded file {name} is neither in tests/golden nor beside the real data")


def recorded_arrays(name: str) -> dict[str, np.ndarray]:
    """All arrays of a recorded .npz file."""
    with np.load(recorded(name)) as file:
        return {key: file[key] for key in file.files}


def recorded_properties(dataset: str, case: str) -> dict:
    """nnU-Net's properties of a preprocessed case."""
    return json.loads(recorded(f"{dataset}/{case}_properties.json").read_text())


def raw_files(dataset: str, case: str) -> tuple[list[Path], Path]:
    """Image files, one per channel, and label file of a recorded case."""
    if dataset == "hippo":
        folder = real_dataset("Task04_Hippocampus")
        return [folder / "imagesTr" / f"{case}.nii.gz"], folder / "labelsTr" / f"{case}.nii.gz"
    images = [recorded(f"{dataset}/raw/{case}_{channel:04d}.nii.gz") for channel in range(CHANNELS[dataset])]
    return images, recorded(f"{dataset}/raw/{case}_label.nii.gz")
