"""What an interrupted prediction left, so that the next call goes on from there."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import jax
import numpy as np

from jaxmamba3d.data import Case
from jaxmamba3d.files import FileIdentities, identify, write_json

RECORD = "finished_cases"


class Finished(TypedDict):
    """A case's outputs: from which images, and which files by their endings."""

    images: FileIdentities
    endings: list[str]


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
        digest: see `digest_of`; records of others are removed.
        endings: of the files of each case.
        writer: number of the process that asks; each keeps a record of its own, and reads all.
        writers: how many they are.
    """

    def __init__(self, folder: Path, digest: str, endings: Sequence[str], writer: int = 0, writers: int = 1):
        self.folder, self.digest, self.endings = folder, digest, endings
        paths = [folder / (f"{RECORD}_{i}.json" if i else f"{RECORD}.json") for i in range(writers)]
        self._path = paths[writer]
        records = {path: self._read(path) for path in sorted(folder.glob(f"{RECORD}*.json"))}
        self._own = records.get(self._path) or {}
        self._all: dict[str, Finished] = {}
        for path, record in records.items():
            if record is not None:
                self._all |= record
            elif path not in paths or path == self._path:  # others remove their own, or have a new one by now
                path.unlink(missing_ok=True)  # what is made now may take the place of what it knows

    def remaining(self, cases: Sequence[Case]) -> list[Case]:
        """The cases that lack an output, or whose images changed since."""
        return [case for case in cases if not self._is_finished(case)]

    def add(self, case: Case) -> None:
        """Notes that a case's output is whole."""
        self._own[case.name] = {"images": identify(case.images), "endings": list(self.endings)}
        write_json(self._path, {"digest": self.digest, "cases": self._own})

    def _is_finished(self, case: Case) -> bool:
        finished = self._all.get(case.name)
        return (
            finished is not None
            and finished["images"] == identify(case.images)
            and set(self.endings) <= set(finished["endings"])
            and all((self.folder / f"{case.name}{ending}").is_file() for ending in self.endings)
        )

    def _read(self, path: Path) -> dict[str, Finished] | None:
        """None: of other weights or settings, or no record."""
        try:
            record = json.loads(path.read_text())
            return dict(record["cases"]) if record["digest"] == self.digest else None
        except (OSError, ValueError, KeyError, TypeError):
            return None
