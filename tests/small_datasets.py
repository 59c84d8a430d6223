"""Small datasets on disk, in both layouts, good ones for tests to spoil."""

import json
from pathlib import Path

import nibabel
import numpy as np

SHAPE = (12, 14, 10)
AFFINE = np.diag([1.0, 1.5, 2.0, 1.0])
FEW_INTENSITIES = 6000
"""That planning samples in tests: nnU-Net's number takes seconds, however small a dataset is."""


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
    """A dataset in the Decathlon's layout: one file per case, channels on the last axis."""
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
    """The same in nnU-Net's raw layout: one file per channel."""
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


def write_btcv(folder: Path, numbers=(1, 2, 21), shape=SHAPE) -> Path:
    """RawData as Synapse ships BTCV's abdomen; returns it."""
    for number in numbers:
        image, label = image_and_label(number, 1, shape)
        write_nifti(folder / "Training" / "img" / f"img{number:04d}.nii.gz", image[..., 0])
        write_nifti(folder / "Training" / "label" / f"label{number:04d}.nii.gz", label)
    write_nifti(folder / "Testing" / "img" / "img0061.nii.gz", image[..., 0])
    return folder


def write_acdc(folder: Path, patients: dict[str, tuple[int, int]], shape=SHAPE) -> Path:
    """ACDC as it is shipped: part/patient -> numbers of the ED and ES frames, such as training/patient001."""
    for place, (diastole, systole) in patients.items():
        patient = Path(place).name
        for frame in (diastole, systole):
            image, label = image_and_label(frame, 1, shape)
            write_nifti(folder / place / f"{patient}_frame{frame:02d}.nii.gz", image[..., 0])
            write_nifti(folder / place / f"{patient}_frame{frame:02d}_gt.nii.gz", label)
        write_nifti(folder / place / f"{patient}_4d.nii.gz", np.stack([image[..., 0]] * 3, -1))
        info = f"ED: {diastole}\nES: {systole}\nGroup: DCM\nHeight: 184.0\nNbFrame: 30\nWeight: 95.0\n"
        (folder / place / "Info.cfg").write_text(info)
    return folder


def change_json(path: Path, **changes) -> None:
    """Sets keys of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
