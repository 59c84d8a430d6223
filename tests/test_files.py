"""Files that several processes write, folders that one keeps to itself."""

import errno
import fcntl
import os
import stat
import threading

import pytest

from jaxmamba3d.files import folder_lock, in_use, replacing, write_text


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


def test_what_failed_leaves_nothing(tmp_path):
    def fails():
        with replacing(tmp_path / "a.txt") as unfinished:
            unfinished.touch()
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert list(tmp_path.iterdir()) == []
