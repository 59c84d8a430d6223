"""Which values the labels of a dataset hold, case by case."""

import contextlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from jaxmamba3d.data.cases import Case
from jaxmamba3d.data.nifti import read_label
from jaxmamba3d.files import identify, load_json, write_json
from jaxmamba3d.machine import core_count

LABEL_VALUES = "label_values.json"


def read_label_values(
    cases: Sequence[Case], folder: str | Path, *, threads: int | None = None
) -> dict[str, list[int] | None]:
    """The values in the label of each case, by its name; None where it has none that can be read.

    Args:
        cases: of a dataset.
        folder: the work folder, which keeps them in label_values.json if it may be written: labels are read
            once, and again when their files have changed.
        threads: that read; None: one for each core.
    """
    path = Path(folder) / LABEL_VALUES
    known = {}
    with contextlib.suppress(FileNotFoundError, ValueError):  # what cannot be read is made again
        known = load_json(path, "the values of labels")
    files = {case.name: identify([case.label] if case.label else []) for case in cases}
    todo = [case for case in cases if known.get(case.name, {}).get("file") != files[case.name]]
    if todo:
        with ThreadPoolExecutor(threads or core_count()) as pool:
            found = list(tqdm(pool.map(_values, todo), "labels", len(todo), unit="case"))
        entries = zip(todo, found, strict=True)
        known |= {case.name: {"file": files[case.name], "values": values} for case, values in entries}
        if os.access(folder, os.W_OK | os.X_OK):
            write_json(path, known)
    return {case.name: known[case.name]["values"] for case in cases}


def _values(case: Case) -> list[int] | None:
    if case.label is None:
        return None
    try:
        return np.unique(read_label(case.label)[0]).tolist()
    except (ValueError, OSError):
        return None  # preprocessing names all cases that cannot be read
