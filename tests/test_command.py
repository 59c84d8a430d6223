"""How commands end."""

import logging

import pytest

from jaxmamba3d import command


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
