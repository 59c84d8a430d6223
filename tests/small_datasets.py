"""Small datasets on disk, in both layouts, good ones for tests to spoil."""

import json
from pathlib import Path

import nibabel
import numpy as np

SHAPE = (12, 14, 10)
AFFINE = np.diag([1.0, 1.5, 2.0, 1.0])


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    """Saves an array in the file's axis order [X, Y, Z(, C)]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


def image_and_label(seed: int, channels: int = 1, shape: tuple[int, int, int] = SHAPE):
    """A noisy image [X, Y, Z, C] float32 with two bright boxes, and their label [X, Y, Z] uint8."""
    rng = np.random.default_rng(seed)
    label = np.zeros(shape, np.uint8)
    for value in (1, 2):
        start = rng.integers(0, np.array(shape) // 2)
        size = np.array(shape) // 4
        label[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = value
    image = rng.normal(100, 10, (*shape, channels)) + 60 * label[..., None]
    return image.astype(np.float32), label


def write_decathlon(folder: Path, *, cases: int = 5, channels: int = 1, shape=SHAPE) -> Path:
    """A dataset in the Decathlon's layout: one file a case, channels on the last axis."""
    entries = []
    for number in range(cases):
        image, label = image_and_label(number, channels, shape)
        name = f"case_{number}.nii.gz"
        write_nifti(folder / "imagesTr" / name, image[..., 0] if channels == 1 else image)
        write_nifti(folder / "labelsTr" / name, label)
        entries.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    description = {
        "modality": {str(c): "MRI" for c in range(channels)},
        "labels": {"0": "background", "1": "left", "2": "right"},
        "numTraining": cases,
        "training": entries,
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def write_nnunet(folder: Path, *, cases: int = 5, channels: int = 1, shape=SHAPE) -> Path:
    """The same in nnU-Net's raw layout: one file a channel."""
    for number in range(cases):
        image, label = image_and_label(number, channels, shape)
        for channel in range(channels):
            write_nifti(folder / "imagesTr" / f"case_{number}_{channel:04d}.nii.gz", image[..., channel])
        write_nifti(folder / "labelsTr" / f"case_{number}.nii.gz", label)
    description = {
        "channel_names": {str(c): "MRI" for c in range(channels)},
        "labels": {"background": 0, "left": 1, "right": 2},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def change_json(path: Path, **changes) -> None:
    """Sets keys of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
