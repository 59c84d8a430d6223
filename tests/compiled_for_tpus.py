"""Programs compiled for TPUs that are not here."""

import importlib.util
import os
import subprocess
import sys

import pytest

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
}


def printed_by(program: str, *arguments: str) -> list[str]:
    """The words a program prints, in a process of its own, because libtpu is set up by the environment."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install libtpu")
    call = [sys.executable, "-c", program, *arguments]
    environment = os.environ | ENVIRONMENT
    done = subprocess.run(call, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()
