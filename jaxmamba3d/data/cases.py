"""Cases and datasets: which files belong together, and what their values mean."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jaxmamba3d.checks import check_that
from jaxmamba3d.files import FileIdentities, identify
from jaxmamba3d.labels import Labels

ENDINGS = (".nii.gz", ".nii")
"""Of NIfTI files; scanners and Windows also write them in capitals."""


@dataclass(frozen=True)
class Case:
    """One patient: a 3D file per channel, or one file with all channels; label None where there is none."""

    name: str
    images: tuple[Path, ...]
    label: Path | None = None

    def identity(self) -> FileIdentities:
        """What a changed, replaced or missing file of the case does not keep."""
        return identify((*self.images, *([] if self.label is None else [self.label])))


@dataclass(frozen=True)
class Dataset:
    """A dataset: cases to train on and, where splits name only some, to test on.

    Args:
        name: of the folder, or of the dataset that it is known to be.
        folder: absolute.
        channel_names: one per channel; they decide the normalisation.
        labels: what label values mean.
        cases: sorted by name.
    """

    name: str
    folder: Path
    channel_names: tuple[str, ...]
    labels: Labels
    cases: tuple[Case, ...]


def nifti_files(folder: Path) -> list[Path]:
    """The NIfTI files that lie in a folder, sorted.

    Raises:
        FileNotFoundError: no such folder, or it has no NIfTI files.
    """
    if not folder.is_dir():
        what = "a file; name the folder that holds it" if folder.is_file() else "no such folder of images"
        raise FileNotFoundError(f"{folder}: {what}")
    files = sorted(path for path in folder.iterdir() if is_nifti(path))
    if not files:
        raise FileNotFoundError(f"{folder}: no .nii.gz or .nii files here")
    return files


def is_nifti(path: Path) -> bool:
    """Whether a file is named as one; macOS leaves ._FILE beside files, which are none."""
    return path.name.lower().endswith(ENDINGS) and path.name[0] != "."


def stem_of(path: Path) -> str:
    """The name of a NIfTI file without its ending."""
    ending = next((ending for ending in ENDINGS if path.name.lower().endswith(ending)), "")
    return path.name[: len(path.name) - len(ending)]


def by_stem(files: Iterable[Path], folder: Path) -> dict[str, Path]:
    """Files by their names without endings.

    Raises:
        ValueError: two have the same.
    """
    found: dict[str, Path] = {}
    for path in files:
        other = found.setdefault(stem_of(path), path)
        check_that(other is path, f"files of {folder}", "one of each name", f"{other.name} and {path.name}")
    return found
