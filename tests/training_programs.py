"""The training program in processes of its own, on small data."""

import csv
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIG = """
from dataclasses import replace
from jaxmamba3d.data import fingerprint
from small_datasets import FEW_INTENSITIES
from small_runs import small_config

fingerprint.INTENSITY_SAMPLES = FEW_INTENSITIES

def get_config():
    config = small_config({dataset!r}, {output!r}, **{train!r})
    return replace(config, data=replace(config.data, batch_size={batch_size}))
"""
SPEED = ("seconds", "patches_per_second", "input_wait", "memory_gib")


def write_config(folder: Path, dataset: Path, *, batch_size: int, **train) -> Path:
    """A config file in a folder, whose run goes to the folder's `run`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.py"
    output = str(folder / "run")
    path.write_text(CONFIG.format(dataset=str(dataset), output=output, train=train, batch_size=batch_size))
    return path


class Program:
    """train.py with a config; it shares compiled programs with others of the same folder of configs.

    Args:
        config: see `write_config`.
        arguments: after it.
        devices: CPU devices.
        environment: more variables.
    """

    def __init__(self, config: Path, *arguments: str, devices: int, environment=()):
        environment = {
            **os.environ,
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            "JAX_NUM_CPU_DEVICES": str(devices),
            "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT)]),
            "PYTHONUNBUFFERED": "1",
            "JAX_COMPILATION_CACHE_DIR": str(config.parent.parent / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            **dict(environment),
        }
        command = [sys.executable, str(ROOT / "train.py"), str(config), *arguments]
        # A file, for a pipe that nobody reads for a while could fill up.
        handle, name = tempfile.mkstemp(dir=config.parent, prefix="output_")
        self._output = Path(name)
        with open(handle, "w") as output:
            self.process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)

    def output(self) -> str:
        """What it has written up to now."""
        return self._output.read_text()

    def finish(self, seconds: float = 500) -> tuple[int, str]:
        """Exit code and output; it is killed if it takes longer."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
        return self.process.wait(), self.output()


def wait_for(condition, program):
    """Until a condition holds, asked without pause; fails if the process ends before."""
    while not condition():
        assert program.process.poll() is None, program.output()
        time.sleep(0.0005)


def epochs_of(run: Path, fold: int = 0) -> list[dict[str, str]]:
    """The rows of a fold's metrics.csv, without how long they took."""
    with (run / f"fold_{fold}" / "metrics.csv").open(newline="") as file:
        return [
            {name: value for name, value in row.items() if name not in SPEED} for row in csv.DictReader(file)
        ]
