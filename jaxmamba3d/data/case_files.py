"""One preprocessed case on disk: a folder that appears whole or not at all.

`image.npy` [X, Y, Z, C] float32, `label.npy` [X, Y, Z] int16, `foreground.npz` ([n, 3] int32 voxels of each
structure that is present, and of what is annotated where there is an ignore label), `properties.json` (what
the inverse of preprocessing needs), `made_from.json` (which files, to notice when they change).
"""

import functools
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmamba3d.files import FileIdentities, load_json, unwritten, write_json

IMAGE, LABEL, FOREGROUND, PROPERTIES = "image.npy", "label.npy", "foreground.npz", "properties.json"
MADE_FROM = "made_from.json"

ANNOTATED = "annotated"

# Each open memory map holds a file descriptor, of which a process may have 1024 on common systems.
OPEN_CASES = 256


class Centres(NamedTuple):
    """Voxels [n, 3] that patches are centred on.

    Args:
        structures: of each class or region that is present.
        annotated: of all voxels that count, where there is an ignore label; else None.
    """

    structures: tuple[np.ndarray, ...]
    annotated: np.ndarray | None = None


class OpenCase(NamedTuple):
    """Memory maps of a case's image [X, Y, Z, C] and label [X, Y, Z]."""

    image: np.ndarray
    label: np.ndarray


def write_case(
    folder: Path,
    *,
    image: np.ndarray,
    label: np.ndarray,
    centres: Centres,
    properties: Mapping[str, Any],
    identity: FileIdentities,
) -> None:
    """Writes a case into a hidden sibling folder and renames that: no half-written case ever has its name.

    Raises:
        OSError: it cannot be written; what was written of it is removed.
    """
    partial, former = (folder.with_name(f".{folder.name}.{state}") for state in ("partial", "former"))
    _remove(partial)
    _remove(former)
    try:
        partial.mkdir()
        np.save(partial / IMAGE, image)
        np.save(partial / LABEL, label)
        tables = {str(number): voxels for number, voxels in enumerate(centres.structures)}
        if centres.annotated is not None:
            tables[ANNOTATED] = centres.annotated
        np.savez(partial / FOREGROUND, **tables)
        write_json(partial / PROPERTIES, properties)
        write_json(partial / MADE_FROM, identity)
        if folder.exists():
            folder.rename(former)
        partial.rename(folder)
    except OSError as error:
        raise unwritten(folder, error) from error
    finally:
        _remove(partial)
        _remove(former)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def is_made_from(folder: Path, identity: FileIdentities) -> bool:
    """Whether a case is there, whole, and made from files as they are now."""
    whole = all((folder / name).is_file() for name in (IMAGE, LABEL, FOREGROUND, PROPERTIES, MADE_FROM))
    return whole and load_json(folder / MADE_FROM, "what a case was made from") == identity


@functools.lru_cache(maxsize=OPEN_CASES)
def open_case(folder: Path) -> OpenCase:
    """Image and label of a case, read from disk only where they are indexed."""
    return OpenCase(np.load(folder / IMAGE, mmap_mode="r"), np.load(folder / LABEL, mmap_mode="r"))


@functools.lru_cache(maxsize=OPEN_CASES)
def read_centres(folder: Path) -> Centres:
    """The voxels that a case's patches are centred on."""
    with np.load(folder / FOREGROUND) as tables:
        names = sorted((name for name in tables.files if name != ANNOTATED), key=int)
        annotated = tables[ANNOTATED] if ANNOTATED in tables.files else None
        return Centres(tuple(tables[name] for name in names), annotated)
