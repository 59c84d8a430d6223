"""Files that several processes write, folders that one keeps to itself."""

import errno
import fcntl
import math
import os
import stat
import threading
from pathlib import Path

import pytest

from jaxmamba3d.files import folder_lock, identify, in_use, replacing, unwritten, without_nan, write_text


def refuse():
    raise ValueError("busy")


def test_two_writers_of_a_file_do_not_meet(tmp_path):
    path = tmp_path / "table.csv"
    with replacing(path) as first, replacing(path) as second:
        for unfinished, text in ((first, "first"), (second, "second")):
            assert unfinished.suffix == ".csv"
            unfinished.write_text(text)
    assert path.read_text() == "first"  # which was left last
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_goes_after_a_day(tmp_path):
    path = tmp_path / "table [1].csv"
    left = [tmp_path / f".unfinished.{token}.{path.name}" for token in ("aa", "bb")]
    for unfinished in left:
        unfinished.touch()
    os.utime(left[0], (0, 0))
    write_text(path, "text")
    assert sorted(tmp_path.iterdir()) == [left[1], path]


def test_a_folder_is_in_use_while_someone_keeps_it(tmp_path):
    folder = tmp_path / "folder"
    assert not in_use(folder)
    assert not folder.exists()
    with folder_lock(folder, refuse):
        assert in_use(folder)
        with pytest.raises(ValueError, match="busy"), folder_lock(folder, refuse):
            pass
    assert not in_use(folder)


def test_where_folders_cannot_be_locked_a_file_in_them_is(tmp_path, monkeypatch):
    """As on NFS, whose locks want a file that is open for writing."""
    flock = fcntl.flock

    def of_nfs(handle, operation):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", of_nfs)
    with folder_lock(tmp_path, refuse):
        assert in_use(tmp_path)
        with pytest.raises(ValueError, match="busy"), folder_lock(tmp_path, refuse):
            pass
    assert not in_use(tmp_path)


def test_who_only_asks_keeps_nobody_out(tmp_path):
    done = threading.Event()

    def ask():
        while not done.is_set():
            in_use(tmp_path)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for _ in range(50):
            with folder_lock(tmp_path, refuse):
                pass
    finally:
        done.set()
        asking.join()


def test_who_may_wait_waits(tmp_path):
    order, waiting = [], threading.Event()

    def second():
        with folder_lock(tmp_path, waiting.set):
            order.append("second")

    with folder_lock(tmp_path, pytest.fail):
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(10)
        thread.join(0.3)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_what_failed_leaves_nothing(tmp_path, error):
    def fails():
        with replacing(tmp_path / "a.txt") as unfinished:
            unfinished.touch()
            raise error

    with pytest.raises(error):
        fails()
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_told_by_where_it_is_and_by_any_change_of_its_time(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.touch()
    os.utime(path, ns=(10**9, 10**9))
    (before,) = identify([path])
    assert before == [str(path), 0, 10**9]
    monkeypatch.chdir(tmp_path)
    assert identify([Path("a.txt")]) == [before]
    os.utime(path, ns=(10**9 + 1, 10**9 + 1))
    assert identify([path]) == [[str(path), 0, 10**9 + 1]]
    path.unlink()
    assert identify([path]) == [[str(path), None, None]]


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "No space left on device; make room and start again",
        ),
        (
            OSError("49152 requested and 12 written"),
            "49152 requested and 12 written; make room and start again",
        ),
        (OSError(errno.EIO, "Input/output error"), "Input/output error; start again"),
    ],
)
def test_what_helps_where_nothing_can_be_written(error, advice):
    assert str(unwritten("a.npy", error)) == f"a.npy could not be written: {advice}, what is whole is kept"


def test_json_knows_neither_nan_nor_infinities():
    content = {"a": [1.5, math.nan, (math.inf, "inf")], "b": -math.inf}
    assert without_nan(content) == {"a": [1.5, None, [None, "inf"]], "b": None}
