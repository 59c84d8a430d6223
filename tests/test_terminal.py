"""Programs whose terminal is gone."""

import subprocess
import sys

from jaxmamba3d.terminal import outlive_the_terminal

PROGRAM = """
import logging, sys
from tqdm import tqdm
from jaxmamba3d.command import run_command

def work():
    logging.getLogger("jaxmamba3d").info("begun")
    input()
    for _ in tqdm(range(100), mininterval=0):
        logging.getLogger("jaxmamba3d").info("still at it")
    print("finished")

run_command(work)
"""


def test_work_goes_on_without_its_terminal():
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", PROGRAM], **options) as program:
        assert program.stderr.readline() == "begun\n"
        program.stderr.close()
        found, _ = program.communicate("\n")
    assert (program.returncode, found) == (0, "finished\n")


def test_what_was_put_in_the_place_of_standard_error_is_left_alone(tmp_path, monkeypatch):
    with (tmp_path / "log").open("w") as log:
        monkeypatch.setattr(sys, "stderr", log)
        outlive_the_terminal()
        assert sys.stderr is log
