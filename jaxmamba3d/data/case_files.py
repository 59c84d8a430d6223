"""One preprocessed case on disk: a folder that appears whole or not at all.

`image.npy` [X, Y, Z, C] float32, `label.npy` [X, Y, Z] int16, `foreground.npz` (class number -> [n, 3] int32
voxels), `properties.json` (what the inverse of preprocessing needs).
"""

import functools
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

IMAGE, LABEL, FOREGROUND, PROPERTIES = "image.npy", "label.npy", "foreground.npz", "properties.json"

# Each open memory map holds a file descriptor, of which a process may have 1024 on common systems.
OPEN_CASES = 256


class OpenCase(NamedTuple):
    """Memory maps of a case's image [X, Y, Z, C] and label [X, Y, Z]."""

    image: np.ndarray
    label: np.ndarray


def write_case(
    folder: Path,
    *,
    image: np.ndarray,
    label: np.ndarray,
    foreground: Mapping[int, np.ndarray],
    properties: Mapping[str, Any],
) -> None:
    """Writes a case into a hidden sibling folder and renames that: no half-written case ever has its name."""
    partial = folder.with_name(f".{folder.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir()
    np.save(partial / IMAGE, image)
    np.save(partial / LABEL, label)
    np.savez(partial / FOREGROUND, **{str(label): voxels for label, voxels in foreground.items()})
    (partial / PROPERTIES).write_text(json.dumps(properties, indent=2) + "\n")
    partial.rename(folder)


@functools.lru_cache(maxsize=OPEN_CASES)
def open_case(folder: Path) -> OpenCase:
    """Image and label of a case, read from disk only where they are indexed."""
    return OpenCase(np.load(folder / IMAGE, mmap_mode="r"), np.load(folder / LABEL, mmap_mode="r"))


@functools.lru_cache(maxsize=OPEN_CASES)
def read_foreground(folder: Path) -> tuple[np.ndarray, ...]:
    """The foreground voxels [n, 3] of each class present in a case, classes ascending."""
    with np.load(folder / FOREGROUND) as table:
        return tuple(table[key] for key in sorted(table.files, key=int))
