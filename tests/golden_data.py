"""Recorded numbers of the reference implementations: how they were made is in tests/golden/README.md."""

from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "golden"


def golden_arrays(name: str) -> dict[str, np.ndarray]:
    """All arrays of an .npz file below tests/golden."""
    with np.load(GOLDEN / name) as file:
        return {key: file[key] for key in file.files}
