"""Files that appear whole or not at all, folders of one process alone, JSON whose errors name the file."""

import contextlib
import errno
import glob
import json
import math
import os
import secrets
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

ONE_DAY = 24 * 3600

LOCK = ".lock"

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk, a quota or a limit of file sizes."""

ARCHIVE_DAMAGES = (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, OSError)
"""What is raised of a zip archive that is not whole."""

FileIdentities = list[list[Any]]
"""JSON-able: path, size and time of each file, the latter two None where it cannot be found."""


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A hidden sibling to write to; it takes the path's place when the block ends well, else it is removed.

    The sibling's name ends as the path's does, for writers that go by the ending, and is no other process's.
    """
    path = Path(path)
    _remove_left_behind(path)
    unfinished = path.with_name(f".unfinished.{secrets.token_hex(4)}.{path.name}")
    with full_disks_named(path):
        try:
            yield unfinished
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise


def _remove_left_behind(path: Path) -> None:
    """What processes that were killed had begun to write: it is older than any writing takes."""
    for unfinished in path.parent.glob(f".unfinished.*.{glob.escape(path.name)}"):
        with contextlib.suppress(OSError):
            if time.time() - unfinished.stat().st_mtime > ONE_DAY:
                unfinished.unlink()


@contextlib.contextmanager
def folder_lock(folder: Path, busy: Callable[[], None]) -> Iterator[None]:
    """Keeps other processes that ask for it likewise out of a folder until the block ends, or the process.

    Where the system or the file system knows no locks, nobody is kept out.

    Args:
        folder: made if missing.
        busy: called if another process is in there; the block waits for it unless this raises.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle, free = _try_lock(folder)
    try:
        if not free:
            busy()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        if handle is not None:
            os.close(handle)


def in_use(folder: Path) -> bool:
    """Whether someone keeps others out of a folder by `folder_lock`."""
    if not folder.is_dir():
        return False
    handle, free = _try_lock(folder)
    if handle is not None:
        os.close(handle)
    return not free


def _try_lock(folder: Path) -> tuple[int | None, bool]:
    """A handle of a folder's lock, None where there are no locks, and whether nobody else holds it."""
    if fcntl is None:
        return None, True
    # NFS locks only what is open for writing, which a folder cannot be.
    for path, mode in ((folder, os.O_RDONLY), (folder / LOCK, os.O_RDWR | os.O_CREAT)):
        handle = None
        try:
            handle = os.open(path, mode)
            return handle, _locked(handle)
        except OSError:
            if handle is not None:
                os.close(handle)
    return None, True


def _locked(handle: int) -> bool:
    """Takes the lock unless another process holds it, and not just while it asks `in_use`."""
    for _ in range(20):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(0.01)
    return False


def identify(paths: Iterable[Path]) -> FileIdentities:
    """Path, size (bytes) and time of change (ns) of files: equal as long as none of them is changed."""
    return [[str(path.resolve()), *_size_and_time(path)] for path in paths]


def _size_and_time(path: Path) -> tuple[int | None, int | None]:
    try:
        stat = path.stat()
    except OSError:
        return None, None
    return stat.st_size, stat.st_mtime_ns


def unwritten(path: str | Path, error: OSError) -> OSError:
    """The error to raise in place of another one that came up while a path was written."""
    reason = error.strerror or str(error)
    advice = "make room and start again" if error.errno in (None, *DISK_FULL) else "start again"
    return OSError(f"{path} could not be written: {reason}; {advice}, what is whole is kept")


@contextlib.contextmanager
def full_disks_named(path: str | Path) -> Iterator[None]:
    """Names the path, and what to do, in the error of a disk that has no more room for it."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise unwritten(path, error) from error
        raise


def check_writable(folder: str | Path, argument: str) -> None:
    """Raises ValueError unless a folder is there, or can be made, to write files in; makes nothing.

    Args:
        folder: the folder.
        argument: what it was to be, for the message.
    """
    folder = Path(folder).absolute()
    found = next(path for path in (folder, *folder.parents) if path.exists())
    if not (found.is_dir() and os.access(found, os.W_OK | os.X_OK)):
        what = "which may not be written" if found.is_dir() else "which is no folder"
        raise ValueError(f"{argument} must be a folder that can be written, got {found}, {what}")


def write_text(path: str | Path, text: str) -> None:
    """Replaces a file's content."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any) -> None:
    """Replaces a file's content by JSON."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def without_nan(content: Any) -> Any:
    """The same nested content with None, JSON's null, for NaN and infinities, which JSON does not know."""
    if isinstance(content, dict):
        return {key: without_nan(entry) for key, entry in content.items()}
    if isinstance(content, list | tuple):
        return [without_nan(entry) for entry in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def load_json(path: str | Path, what: str, kind: type[dict] | type[list] = dict) -> Any:
    """The content of a JSON file; `what` says in errors what it should hold, such as "nnU-Net's plans".

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not JSON, or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; it should hold {what}")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))  # some editors put a mark before the text
    except ValueError as error:
        raise ValueError(f"{path} must hold {what} as JSON, got text that is not JSON: {error}") from error
    if not isinstance(content, kind):
        raise ValueError(f"{path} must hold {what}, got a JSON {type(content).__name__}")
    return content
