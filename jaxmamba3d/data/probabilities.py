"""The files of probabilities that are written beside segmentations, as nnU-Net writes them."""

import zipfile
from pathlib import Path

import numpy as np

from jaxmamba3d.checks import check_that
from jaxmamba3d.files import ARCHIVE_DAMAGES, replacing

PROBABILITIES = ".npz"
"""Ending of the files."""

_NAME = "probabilities"


def write_probabilities(path: str | Path, probabilities: np.ndarray) -> None:
    """Writes probabilities [K, z, y, x]; under a temporary name at first."""
    with replacing(path) as unfinished:
        np.savez_compressed(unfinished, **{_NAME: probabilities})


def read_probabilities(path: str | Path) -> np.ndarray:
    """The probabilities of a file, [K, z, y, x].

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds none, or is damaged.
    """
    path = Path(path)
    wanted = "a whole file of probabilities, as `predict --probabilities` writes it"
    with path.open("rb") as file:
        check_that(zipfile.is_zipfile(file), str(path), wanted, "no archive, or a part of one")
        try:
            with np.load(file) as arrays:
                probabilities = arrays[_NAME]
        except (ValueError, KeyError, *ARCHIVE_DAMAGES) as error:
            raise ValueError(f"{path} must be {wanted}, got: {error}") from error
    sound = probabilities.ndim == 4 and np.issubdtype(probabilities.dtype, np.floating)
    check_that(sound, str(path), f"{wanted}, [K, z, y, x]", f"{probabilities.dtype}{[*probabilities.shape]}")
    return probabilities
