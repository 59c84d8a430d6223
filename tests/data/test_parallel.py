"""Work in processes: order, errors, death, and programs that are scripts."""

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxmamba3d.data.parallel import ALGEBRA_THREADS, map_cases


def square(number: int) -> int:
    if number == 7:
        raise ValueError("seven is bad")
    return number**2


def process_of(number: int) -> int:
    return os.getpid()


def algebra_threads(number: int) -> dict[str, str]:
    return {name: os.environ[name] for name in ALGEBRA_THREADS if name in os.environ}


def terminate(number: int) -> int:
    os.kill(os.getpid(), signal.SIGTERM)
    return number


def die(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("processes", [1, 2, None])
def test_results_are_in_order(processes):
    assert map_cases(abs, [-3, 2, -1, 5], processes=processes, description="abs") == [3, 2, 1, 5]
    assert map_cases(abs, [], processes=processes, description="nothing") == []


def test_one_process_is_this_one():
    assert map_cases(process_of, [1, 2], processes=1, description="pid") == [os.getpid()] * 2


def test_more_processes_are_others():
    found = set(map_cases(process_of, list(range(6)), processes=2, description="pid"))
    assert 1 <= len(found) <= 2
    assert os.getpid() not in found


@pytest.mark.parametrize("wish", [None, *ALGEBRA_THREADS])
def test_workers_multiply_matrices_in_one_thread_each(monkeypatch, wish):
    """Or as the user wants."""
    for name in ALGEBRA_THREADS:
        monkeypatch.delenv(name, raising=False)
    expected = {wish: "3"} if wish else dict.fromkeys(ALGEBRA_THREADS, "1")
    if wish:
        monkeypatch.setenv(wish, "3")
    assert map_cases(algebra_threads, [1, 2], processes=2, description="threads") == [expected] * 2
    assert algebra_threads(0) == ({wish: "3"} if wish else {})


@pytest.mark.parametrize("processes", [1, 2])
def test_errors_reach_the_caller(processes):
    with pytest.raises(ValueError, match="seven is bad"):
        map_cases(square, [1, 7, 2], processes=processes, description="square")


def note(folder: Path, number: int) -> None:
    (folder / str(number)).touch()
    time.sleep(0.01)
    if number == 0:
        raise ValueError("zero is bad")


def test_what_was_not_begun_when_one_failed_is_given_up(tmp_path):
    with pytest.raises(ValueError, match="zero is bad"):
        map_cases(functools.partial(note, tmp_path), range(1500), processes=2, description="note")
    assert 1 <= len(list(tmp_path.iterdir())) < 1400


def test_workers_outlive_the_sigterm_of_a_scheduler():
    """Which all processes of a job get: the parent decides what ends."""
    assert map_cases(terminate, [1, 2, 3], processes=2, description="terminate") == [1, 2, 3]


def test_a_killed_worker_is_explained():
    with pytest.raises(ChildProcessError, match=r"die: a worker process died.* fewer than 2 processes"):
        map_cases(die, [1, 2, 3], processes=2, description="die")


def test_a_script_needs_no_main_guard_and_is_not_imported_again(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from jaxmamba3d.data.parallel import map_cases\n"
        "print('program')\n"
        "print(map_cases(abs, [-1, -2], processes=2, description='abs'))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.stdout.split("\n") == ["program", "[1, 2]", ""], done.stderr


def sleep_long(number: int) -> None:
    os.write(1, f"{os.getpid()}\n".encode())
    time.sleep(600)


def send_much(number: int) -> bytes:
    os.write(1, f"{os.getpid()}\n".encode())
    return bytes(30_000_000)


def started(script: str) -> subprocess.Popen:
    """A program of this module's names, in a group of processes of its own, whose two workers are at work.

    It hears SIGINT, which what a shell starts in the background is born deaf to.
    """
    paths = os.pathsep.join([os.path.dirname(__file__), os.getcwd()])
    hears = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = subprocess.Popen(
        [sys.executable, "-c", f"from test_parallel import *\n{hears}\n{script}"],
        env=os.environ | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for _ in range(2):
        assert int(program.stdout.readline()) > 0
    return program


def test_workers_end_with_a_parent_that_is_killed():
    with started("map_cases(sleep_long, [1, 2], processes=2, description='sleep')") as parent:
        parent.kill()
        # The pipe ends when no worker holds it any more.
        assert parent.communicate(timeout=60)[0] == ""


@pytest.mark.parametrize(("work", "seconds"), [("sleep_long", 0.0), ("send_much", 0.2), ("send_much", 0.5)])
def test_ctrl_c_does_not_wait_for_the_cases_at_work(work, seconds):
    """Nor for the rest of half a result.

    A terminal sends it to all processes; the commands then end like this.
    """
    script = f"""
try:
    map_cases({work}, range(1000), processes=2, description='work')
except KeyboardInterrupt:
    sys.exit(130)
"""
    with started(script) as parent:
        time.sleep(seconds)
        os.killpg(parent.pid, signal.SIGINT)
        try:
            printed, errors = parent.communicate(timeout=30)
        finally:
            parent.kill()
        assert parent.returncode == 130
        assert work == "send_much" or printed == ""
        assert "Traceback" not in errors
        assert "leaked" not in errors
