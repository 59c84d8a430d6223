"""Weight files in the formats that PyTorch users have."""

import zipfile
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from jaxmamba3d.checks import check_choice, check_that
from jaxmamba3d.files import ARCHIVE_DAMAGES
from jaxmamba3d.nets.torch_checkpoint import read_torch_checkpoint


def read_weights(file: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a weight file; its ending says which kind it is.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is of another kind, or damaged.
    """
    file = Path(file)
    readers = {
        ".pth": read_torch_checkpoint,
        ".safetensors": load_file,
        ".npz": _read_npz,
    }
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file of weights")
    check_choice(f"the ending of {file}", file.suffix, readers)
    try:
        return readers[file.suffix](file)
    except (SafetensorError, *ARCHIVE_DAMAGES) as error:
        raise ValueError(f"{file} must be a whole {file.suffix} file, got: {error}") from error


def _read_npz(file: Path) -> dict[str, np.ndarray]:
    check_that(zipfile.is_zipfile(file), str(file), "a file of numpy.savez", "another format")
    try:
        with file.open("rb") as opened, np.load(opened) as arrays:
            return dict(arrays)
    except ValueError as error:  # of a damaged header, which NumPy says without the file's name
        raise zipfile.BadZipFile(str(error)) from error
