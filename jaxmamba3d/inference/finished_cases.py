"""What an interrupted prediction left, so that the next call resumes there."""

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypedDict

import jax
import numpy as np

from jaxmamba3d.checks import check_that
from jaxmamba3d.data import Case
from jaxmamba3d.data.dataset import DESCRIPTION
from jaxmamba3d.files import FileIdentities, identify, write_json
from jaxmamba3d.wording import counted, first_few

logger = logging.getLogger(__name__)

RECORD = "finished_cases"


class Finished(TypedDict):
    """A case's outputs: from which images, and which files by their endings."""

    images: FileIdentities
    endings: list[str]


class Record(TypedDict):
    """By which weights and settings, which cases are finished, and which outputs are made here."""

    digest: str
    cases: dict[str, Finished]
    claimed: list[str]


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
        digest: see `digest_of`.
        endings: of the files of each case.
        writer: number of the process that asks; each keeps a record of its own, and reads all.
        writers: how many they are.
    """

    def __init__(self, folder: Path, digest: str, endings: Sequence[str], writer: int = 0, writers: int = 1):
        self.folder, self.digest, self.endings = folder, digest, endings
        paths = [folder / (f"{RECORD}_{i}.json" if i else f"{RECORD}.json") for i in range(writers)]
        self._path = paths[writer]
        records = _read_records(folder)
        self._claimed = _claimed_in(records.values())
        same = {path: record["cases"] for path, record in records.items() if record["digest"] == digest}
        self._own = same.get(self._path, {})
        self._all = {name: finished for cases in same.values() for name, finished in cases.items()}
        # Others of these writers remove their own, or have a new one by now.
        self._old = [path for path in records if path not in same and path not in paths]

    def begin(self, cases: Sequence[Case]) -> None:
        """Notes that outputs of these cases are made here, and forgets those of other weights or such."""
        self._claimed |= {case.name for case in cases}
        self._write()
        for path in self._old:
            path.unlink(missing_ok=True)  # what is made now may take the place of what it knows

    def remaining(self, cases: Sequence[Case]) -> list[Case]:
        """The cases that lack an output, or whose images changed since."""
        return [case for case in cases if not self._is_finished(case)]

    def add(self, case: Case) -> None:
        """Notes that a case's output is whole."""
        self._own[case.name] = {"images": identify(case.images), "endings": list(self.endings)}
        self._write()

    def _write(self) -> None:
        content = {"digest": self.digest, "cases": self._own, "claimed": sorted(self._claimed)}
        write_json(self._path, content)

    def _is_finished(self, case: Case) -> bool:
        finished = self._all.get(case.name)
        return (
            finished is not None
            and finished["images"] == identify(case.images)
            and set(self.endings) <= set(finished["endings"])
            and all((self.folder / f"{case.name}{ending}").is_file() for ending in self.endings)
        )


def check_only_own(folder: Path, cases: Sequence[Case], endings: Sequence[str]) -> None:
    """Raises ValueError if outputs would take the place of files that no prediction into this folder made.

    Where a record cannot be read, any may have been.
    """
    outputs = {f"{case.name}{ending}": case.name for case in cases for ending in endings}
    there = [name for name in outputs if (folder / name).exists()]
    is_described = (folder / DESCRIPTION).exists()
    records = _read_records(folder)  # last, for processes beside this one claim before they write
    if len(records) < len(list(folder.glob(f"{RECORD}*.json"))):
        return
    claimed = _claimed_in(records.values())
    foreign = [name for name in there if outputs[name] not in claimed]
    foreign += [DESCRIPTION] if is_described and not claimed else []
    wanted = "a folder without other files that would be overwritten (remove them, or choose another)"
    check_that(not foreign, "output", wanted, f"{', '.join(foreign[:3])} in {folder}")


def warn_of_others(folder: Path, cases: Sequence[Case], ending: str) -> None:
    """Warns if outputs of other cases lie in the folder, which would be scored with these."""
    names = {f"{case.name}{ending}" for case in cases}
    others = sorted(path.name for path in folder.glob(f"*{ending}") if path.name not in names)
    if others:
        what = "%s already holds %s of other images, made before: %s; move them away if they do not belong"
        logger.warning(what, folder, counted(len(others), "file"), first_few(others))


def _read_records(folder: Path) -> dict[Path, Record]:
    found = {}
    for path in sorted(folder.glob(f"{RECORD}*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            content = json.loads(path.read_text(encoding="utf-8"))
            found[path] = Record(
                digest=content["digest"], cases=dict(content["cases"]), claimed=content["claimed"]
            )
    return found


def _claimed_in(records: Iterable[Record]) -> set[str]:
    """A case is claimed before it is finished."""
    return {name for record in records for name in record["claimed"]}
