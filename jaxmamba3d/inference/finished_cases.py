"""What an interrupted prediction left, so that the next call goes on from there."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmamba3d.data import Case
from jaxmamba3d.files import FileIdentities, identify, write_json

RECORD = "finished_cases"


def digest_of(variables: Any, settings: dict[str, Any]) -> str:
    """What tells predictions of other weights or settings apart: a hash of both, in hexadecimal.

    Args:
        variables: arrays, as a pytree.
        settings: JSON-able.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data.cast("B"))
    return digest.hexdigest()


class FinishedCases:
    """The record of an output folder: by which weights and settings its files were made, from which images.

    Args:
        folder: of the outputs.
        digest: see `digest_of`; a record of another one counts for nothing.
        endings: of the files of each case.
        writer: number of the process that asks; each keeps a record of its own, and reads all.
    """

    def __init__(self, folder: Path, digest: str, endings: Sequence[str], writer: int = 0):
        self.folder, self.digest, self.endings = folder, digest, endings
        self._path = folder / (f"{RECORD}_{writer}.json" if writer else f"{RECORD}.json")
        self._own = self._read(self._path)
        self._all: dict[str, FileIdentities] = {}
        for path in sorted(folder.glob(f"{RECORD}*.json")):
            self._all |= self._read(path)

    def remaining(self, cases: Sequence[Case]) -> list[Case]:
        """The cases that lack an output, or whose images changed since."""
        return [
            case
            for case in cases
            if self._all.get(case.name) != identify(case.images)
            or not all((self.folder / f"{case.name}{ending}").is_file() for ending in self.endings)
        ]

    def add(self, case: Case) -> None:
        """Notes that a case's output is whole."""
        self._own[case.name] = identify(case.images)
        write_json(self._path, {"digest": self.digest, "images": self._own})

    def _read(self, path: Path) -> dict[str, FileIdentities]:
        try:
            record = json.loads(path.read_text())
            return dict(record["images"]) if record["digest"] == self.digest else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}  # no record, or none of ours: nothing is finished
