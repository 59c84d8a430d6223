"""BTCV ("Synapse") and ACDC as their providers ship them, read where they lie; neither has a dataset.json.

BTCV (https://www.synapse.org/#!Synapse:syn3193805, "Abdomen"): RawData.zip unpacks to RawData/Training/ with
img/img0001.nii.gz and label/label0001.nii.gz. The paper's authors call that case abdomen_001, and so on: the
dataset_fingerprint.json beside their plans lists 147, 139, 198, ... slices, those of img0001, img0002, ...

ACDC (https://www.creatis.insa-lyon.fr/Challenge/acdc/databases.html): training/patient001/ holds Info.cfg,
which names the frames of end-diastole (ED) and end-systole (ES), patient001_frame01.nii.gz and its label
patient001_frame01_gt.nii.gz, and likewise the other frame; patient001_4d.nii.gz is not needed. The authors
train and test on patients of training/ alone; those of testing/ are read when that folder itself is named.
"""

import logging
import re
from pathlib import Path

from jaxmamba3d.checks import check_that
from jaxmamba3d.data.cases import ENDINGS, Case, Dataset, nifti_files, stem_of
from jaxmamba3d.labels import BACKGROUND, Labels

logger = logging.getLogger(__name__)

BTCV_FOLDERS = (".", "Training", "RawData/Training", "Abdomen/RawData/Training")
BTCV_PARTS = ("img", "label")
BTCV_CASES = 30
ORGANS = (
    "spleen",
    "right kidney",
    "left kidney",
    "gallbladder",
    "esophagus",
    "liver",
    "stomach",
    "aorta",
    "inferior vena cava",
    "portal vein and splenic vein",
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
)

ACDC_FOLDERS = (".", "training", "database/training")
ACDC_PATIENTS = {"training": 100, "testing": 50}
HEART = ("RV", "MLV", "LVC")
PATIENT = re.compile(r"patient\d{3}")
FRAMES = ("ED", "ES")


def is_shipped(folder: Path) -> bool:
    """Whether BTCV or ACDC, or a part of them, was unpacked to this folder or below it."""
    return _btcv_folder(folder) is not None or _acdc_folder(folder) is not None


def read_shipped(folder: Path) -> Dataset:
    """The dataset of a folder that `is_shipped`.

    A label or an image that is not there is listed, for the check of files to find.

    Raises:
        FileNotFoundError: BTCV's folder lacks `img` or `label`, or one of them is empty.
        ValueError: files do not have the provider's names, or frames cannot be told; all such are named.
    """
    btcv = _btcv_folder(folder)
    return _read_acdc(_acdc_folder(folder)) if btcv is None else _read_btcv(btcv)


def _btcv_folder(folder: Path) -> Path | None:
    found = (folder / part for part in BTCV_FOLDERS)
    return next((path for path in found if any((path / name).is_dir() for name in BTCV_PARTS)), None)


def _acdc_folder(folder: Path) -> Path | None:
    return next((folder / part for part in ACDC_FOLDERS if _patients(folder / part)), None)


def _read_btcv(folder: Path) -> Dataset:
    for part in BTCV_PARTS:
        if not (folder / part).is_dir():
            raise FileNotFoundError(
                f"{folder / part}: no such folder; BTCV's Training folder has `img` and `label` (to predict "
                "images alone, name the folder `img` itself)"
            )
    images, labels = (_numbered(folder / part) for part in BTCV_PARTS)
    cases = tuple(
        Case(
            f"abdomen_{int(number):03d}",
            (images.get(number, folder / "img" / f"img{number}{ENDINGS[0]}"),),
            labels.get(number, folder / "label" / f"label{number}{ENDINGS[0]}"),
        )
        for number in sorted(images | labels)
    )
    _warn_of_missing(folder, len(cases), BTCV_CASES, "cases")
    return Dataset("BTCV", folder.resolve(), ("CT",), _labels(ORGANS), cases)


def _numbered(folder: Path) -> dict[str, Path]:
    """Number -> file, of img0001.nii.gz in `img` or label0001.nii.gz in `label`."""
    files = nifti_files(folder)
    found = {path: re.fullmatch(rf"{folder.name}(\d{{4}})", stem_of(path)) for path in files}
    stray = [path.name for path, match in found.items() if not match]
    check_that(not stray, f"files of {folder}", f"{folder.name}0001{ENDINGS[0]}, ... as BTCV's are", stray)
    return {match[1]: path for path, match in found.items()}


def _patients(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if PATIENT.fullmatch(path.name) and path.is_dir())


def _read_acdc(folder: Path) -> Dataset:
    patients = _patients(folder)
    cases: list[Case] = []
    problems: list[str] = []
    for patient in patients:
        try:
            cases += [_frame(patient, frame) for frame in _frames(patient / "Info.cfg")]
        except (ValueError, OSError) as error:
            problems.append(str(error))
    if problems:
        bad = f"{len(problems)} of {len(patients)} patients of {folder} are bad"
        raise ValueError(f"{bad}; copy them again or remove them:\n" + "\n".join(problems))
    folder = folder.resolve()
    _warn_of_missing(folder, len(patients), ACDC_PATIENTS.get(folder.name, len(patients)), "patients")
    return Dataset("ACDC", folder, ("cineMRI",), _labels(HEART), tuple(sorted(cases, key=lambda c: c.name)))


def _frames(info: Path) -> list[int]:
    """The numbers of a patient's end-diastolic and end-systolic frames."""
    if not info.is_file():
        raise FileNotFoundError(f"{info}: missing; it says which frames are ED and ES")
    lines = (line.partition(":") for line in info.read_text(errors="replace").splitlines())
    entries = {key.strip(): value.strip() for key, _, value in lines}
    found = {key: entries.get(key, "") for key in FRAMES}
    numbers = [int(value) for value in found.values() if value.isdecimal()]
    wanted = 'a file with the numbers of two frames in the lines "ED: " and "ES: "'
    check_that(len(set(numbers)) == len(FRAMES), str(info), wanted, found)
    return numbers


def _frame(patient: Path, frame: int) -> Case:
    name = f"{patient.name}_frame{frame:02d}"
    return Case(name, (_nifti(patient / name),), _nifti(patient / f"{name}_gt"))


def _nifti(path: Path) -> Path:
    """The file with the ending that is there, or .nii.gz."""
    files = [path.with_name(path.name + ending) for ending in ENDINGS]
    return next((file for file in files if file.is_file()), files[0])


def _labels(structures: tuple[str, ...]) -> Labels:
    return Labels({name: (value,) for value, name in enumerate((BACKGROUND, *structures))})


def _warn_of_missing(folder: Path, found: int, shipped: int, what: str) -> None:
    if found != shipped:
        logger.warning("%s has %d %s, but is shipped with %d", folder, found, what, shipped)
