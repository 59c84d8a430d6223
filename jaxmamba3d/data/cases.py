"""Cases and datasets: which files belong together, and what their values mean."""

from dataclasses import dataclass
from pathlib import Path

from jaxmamba3d.files import FileIdentities, identify
from jaxmamba3d.labels import Labels

ENDINGS = (".nii.gz", ".nii")


@dataclass(frozen=True)
class Case:
    """One patient: a 3D file a channel, or one file with all channels; label None where there is none."""

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
        channel_names: one a channel; they decide the normalisation.
        labels: what label values mean.
        cases: sorted by name.
    """

    name: str
    folder: Path
    channel_names: tuple[str, ...]
    labels: Labels
    cases: tuple[Case, ...]


def nifti_files(folder: Path) -> list[Path]:
    """The NIfTI files that lie in a folder, sorted; macOS leaves ._FILE beside files, which are none.

    Raises:
        FileNotFoundError: no such folder, or it has no NIfTI files.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of images")
    files = sorted(path for path in folder.iterdir() if path.name.endswith(ENDINGS) and path.name[0] != ".")
    if not files:
        raise FileNotFoundError(f"{folder}: no .nii.gz or .nii files here")
    return files


def stem_of(path: Path) -> str:
    """The name of a NIfTI file without its ending."""
    return path.name.removesuffix(".gz").removesuffix(".nii")
