"""Several processes train as one: really started, with `jax.distributed`, by the training program."""

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_datasets import write_nnunet
from small_runs import params_of

from jaxmamba3d.run import open_run

ROOT = Path(__file__).parents[2]
DEVICES = 8
CONFIG = """
from dataclasses import replace
from pathlib import Path
from small_runs import all_folds_config

def get_config():
    config = all_folds_config({dataset!r}, Path({output!r}))
    train = replace(config.train, epochs=2, steps_per_epoch=3)
    return replace(config, data=replace(config.data, batch_size=8), train=train)
"""


def start(config: Path, *arguments: str, devices: int, environment=()) -> subprocess.Popen:
    paths = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
    environment = {
        **{name: value for name, value in os.environ.items() if name != "XLA_FLAGS"},
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "PYTHONPATH": paths,
        **dict(environment),
    }
    command = [sys.executable, str(ROOT / "train.py"), str(config), *arguments]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run_together(config: Path, count: int, *arguments: str) -> list[tuple[int, str]]:
    """Exit code and output of each of so many processes."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    processes = [
        start(
            config,
            "--train.distributed",
            *arguments,
            devices=DEVICES // count,
            environment={
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(number),
            },
        )
        for number in range(count)
    ]
    try:
        outputs = [process.communicate(timeout=500)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]


def results(folder):
    """What an epoch came to, without how long it took."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    wanted = ("learning_rate", "gradient_norm", "train_loss", "validation_loss")
    return np.array([[float(row[name]) for name in wanted] for row in rows])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_nnunet(tmp_path_factory.mktemp("data") / "Dataset001_Small", channels=2)


def written_config(folder, dataset):
    path = folder / "config.py"
    path.write_text(CONFIG.format(dataset=str(dataset), output=str(folder)))
    return path


def test_two_processes_train_as_one(dataset, tmp_path):
    """All folds, of which there are two."""
    together, alone = tmp_path / "together", tmp_path / "alone"
    for folder in (together, alone):
        folder.mkdir()
    for code, output in run_together(written_config(together, dataset), 2):
        assert code == 0, output
    process = start(written_config(alone, dataset), devices=DEVICES)
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output
    for fold in ("fold_0", "fold_1"):
        found, expected = (results(folder / "run" / fold) for folder in (together, alone))
        assert len(expected) == 2
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    runs = [open_run(folder / "run") for folder in (together, alone)]
    for one, other in zip(*map(params_of, runs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
    # One process writes: the folders hold the same files.
    files = [
        {
            path.relative_to(run.folder)
            for path in run.folder.rglob("*.*")
            if not {"tensorboard", "checkpoints"} & set(path.parts)
        }
        for run in runs
    ]
    assert files[0] == files[1]
    assert Path("scores/summary.json") in files[0]
