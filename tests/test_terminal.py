"""Programs whose terminal is gone."""

import subprocess
import sys

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
