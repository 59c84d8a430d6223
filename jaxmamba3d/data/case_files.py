"""One preprocessed case on disk: a folder that appears whole or not at all.

`image.npy` [X, Y, Z, C] float32, `label.npy` [X, Y, Z] int16, `foreground.npz` ([n, 3] int32 voxels of each
structure that is present, and of what is annotated where there is an ignore label), `properties.json` (what
the inverse of preprocessing needs), `made_from.json` (which files, to notice when they change).
"""

import functools
import shutil
import threading
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmamba3d.files import FileIdentities, load_json, unwritten, write_json

IMAGE, LABEL, FOREGROUND, PROPERTIES = "image.npy", "label.npy", "foreground.npz", "properties.json"
MADE_FROM = "made_from.json"

ANNOTATED = "annotated"

# Each open memory map holds a file descriptor, of which a process may have 1024 on common systems.
OPEN_CASES = 256

TABLE_CACHE_SIZE = 1024
"""Of voxels to centre on, in memory: mostly 120 kB each."""

_PARSER = threading.Lock()
"""Python's parser, which reads the headers of arrays, may fail in two threads at once (CPython #106905)."""


class Centres(NamedTuple):
    """Voxels [n, 3] that patches are centred on.

    Args:
        structures: of each class or region that is present.
        annotated: of all voxels that count, where there is an ignore label; else None.
    """

    structures: tuple[np.ndarray, ...]
    annotated: np.ndarray | None = None


class CentreTables(Sequence[np.ndarray]):
    """Voxels [n, 3] of several structures, each read where it is indexed."""

    def __init__(self, folder: Path, names: Sequence[str]):
        self._folder, self._names = folder, names

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, i: int) -> np.ndarray:
        return _table(self._folder, self._names[i])


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
    try:
        _open(folder)
        _tables(folder)
        load_json(folder / PROPERTIES, "what the inverse of preprocessing needs")
        return load_json(folder / MADE_FROM, "what a case was made from", list) == identity
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return False


@functools.lru_cache(maxsize=OPEN_CASES)
def open_case(folder: Path) -> OpenCase:
    """Image and label of a case, read from disk only where they are indexed."""
    return _open(folder)


@functools.lru_cache(maxsize=OPEN_CASES)
def centres_of(folder: Path) -> tuple[CentreTables, CentreTables]:
    """The voxels that a case's patches are centred on: of its structures, and, none or one, what is annotated
    where there is an ignore label."""
    annotated = [name for name in _tables(folder) if name == ANNOTATED]
    structures = sorted((name for name in _tables(folder) if name != ANNOTATED), key=int)
    return CentreTables(folder, structures), CentreTables(folder, annotated)


def forget_cases() -> None:
    """Opens cases again from here on, for they may have been preprocessed again."""
    for opened in (open_case, centres_of, _table):
        opened.cache_clear()


def _open(folder: Path) -> OpenCase:
    with _PARSER:
        return OpenCase(np.load(folder / IMAGE, mmap_mode="r"), np.load(folder / LABEL, mmap_mode="r"))


@functools.lru_cache(maxsize=TABLE_CACHE_SIZE)
def _table(folder: Path, name: str) -> np.ndarray:
    with _PARSER, np.load(folder / FOREGROUND) as tables:
        return tables[name]


def _tables(folder: Path) -> list[str]:
    with zipfile.ZipFile(folder / FOREGROUND) as tables:
        return [Path(name).stem for name in tables.namelist()]
