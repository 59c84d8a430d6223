"""How commands end."""

import logging

import pytest

from jaxmamba3d import command
from jaxmamba3d.checks import InterruptedTraining, UnsupportedError


@pytest.mark.parametrize(("level", "shown"), [("info", False), ("debug", True)])
def test_what_orbax_logs_and_raises_is_said_once(monkeypatch, capsys, level, shown):
    def save():
        logging.getLogger("absl").warning("a warning")
        logging.getLogger("absl").error("pages of an error")

    monkeypatch.setenv("JAXMAMBA3D_LOG_LEVEL", level)
    command.run_command(save)
    printed = capsys.readouterr().err
    assert "a warning" in printed
    assert ("pages of an error" in printed) == shown


def test_lack_of_host_memory_is_said_with_what_helps(capsys):
    def read():
        raise MemoryError("Unable to allocate 3.47 GiB")

    with pytest.raises(SystemExit, match=r"machine's memory; .*data\.patch_size.*3\.47 GiB"):
        command.run_command(read)


@pytest.mark.parametrize("error", [ValueError, FileNotFoundError, FloatingPointError, UnsupportedError])
def test_what_its_user_can_fix_ends_a_command_with_one_sentence(capsys, error):
    def fail():
        raise error("what is wrong")

    with pytest.raises(SystemExit, match=r"^error: what is wrong$"):
        command.run_command(fail)
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (InterruptedTraining("stopped; the same command resumes"), 75, "stopped; the same command resumes"),
        (KeyboardInterrupt(), 130, "stopped; the same command resumes from what is finished"),
    ],
)
def test_schedulers_and_shells_are_told_why_a_command_ended(monkeypatch, capsys, error, code, words):
    def stop():
        raise error

    def end(code):
        raise SystemExit(code)

    monkeypatch.setattr(command, "_end_now", end)
    with pytest.raises(SystemExit) as ended:
        command.run_command(stop)
    assert ended.value.code == code
    assert capsys.readouterr().err == f"{words}\n"


def test_lack_of_device_memory_is_said_with_what_helps():
    class JaxRuntimeError(RuntimeError):
        pass

    def step():
        raise JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore lines")

    with pytest.raises(SystemExit, match=r"device's memory; set net\.remat.*allocating 9 bytes\.\)$"):
        command.run_command(step)


def test_the_end_of_another_process_is_said_in_one_sentence(monkeypatch, capsys):
    class JaxRuntimeError(RuntimeError):
        pass

    def wait():
        raise JaxRuntimeError("UNAVAILABLE: connection lost\nmore lines")

    def end(code):
        raise SystemExit(code)

    with pytest.raises(JaxRuntimeError):  # alone, it is an error like others
        command.run_command(wait)
    monkeypatch.setattr(command, "_is_one_of_several", lambda: True)
    monkeypatch.setattr(command, "_end_now", end)
    with pytest.raises(SystemExit) as ended:
        command.run_command(wait)
    assert ended.value.code == 1
    printed = capsys.readouterr().err
    assert "another process has ended: its output says why, unless it was killed" in printed
    assert "Traceback" not in printed
