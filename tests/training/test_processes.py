"""Several processes train as one: really started, with `jax.distributed`, by the training program."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from small_datasets import write_nnunet
from small_runs import params_of
from training_programs import Program, epochs_of, wait_for, write_config

from jaxmamba3d.command import TRY_AGAIN
from jaxmamba3d.files import load_json, write_json
from jaxmamba3d.run import open_run
from jaxmamba3d.training import join_processes
from jaxmamba3d.training.processes import PROCESSES_A_MACHINE

DEVICES = 8
TRAINING = {"batch_size": 8, "epochs": 2, "steps_per_epoch": 3}
NAMES = [f"case_{number}" for number in range(5)]
SPLITS = [{"train": NAMES[2:], "val": NAMES[:1]}, {"train": NAMES[:2], "val": NAMES[2:]}]


ERROR_IN_ONE = """
import jax
from jaxmamba3d.command import run_command
from jaxmamba3d.training.processes import join_processes, wait_for_all_processes

def work():
    join_processes()
    if jax.process_index() == 1:
        raise OSError("no room here")
    wait_for_all_processes()

run_command(work)
"""


def told_to_processes(count):
    """The environment of each of so many processes, by which they find each other."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    told = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": str(count)}
    return [told | {"JAX_PROCESS_ID": str(number)} for number in range(count)]


def start_together(config, count, *arguments):
    """So many processes of the training program."""
    return [
        Program(config, "--train.distributed", *arguments, devices=DEVICES // count, environment=environment)
        for environment in told_to_processes(count)
    ]


def files_of(run):
    """But for those whose names differ from run to run."""
    apart = {"tensorboard", "checkpoints"}
    paths = (path.relative_to(run) for path in run.rglob("*.*"))
    return {path for path in paths if not apart & set(path.parts)}


def test_two_processes_train_as_one(tmp_path):
    """On all folds, of which there are two; SIGTERM to one of the processes stops both for a while."""
    dataset = write_nnunet(tmp_path / "Dataset001_Small", channels=2)
    together, alone = tmp_path / "together", tmp_path / "alone"
    write_json(tmp_path / "splits.json", SPLITS)
    folds = ("--data.splits", str(tmp_path / "splits.json"), "--data.fold", "all")
    config = write_config(together, dataset, **TRAINING)
    programs = start_together(config, 2, *folds)
    wait_for((together / "run" / "fold_0" / "metrics.csv").is_file, programs[0])
    programs[1].process.send_signal(signal.SIGTERM)
    for code, output in [program.finish() for program in programs]:
        assert code == TRY_AGAIN, output
        assert "stopped by SIGTERM after" in output
    assert not (together / "run" / "scores").exists()
    for code, output in [program.finish() for program in start_together(config, 2, *folds)]:
        assert code == 0, output
    code, output = Program(write_config(alone, dataset, **TRAINING), *folds, devices=DEVICES).finish()
    assert code == 0, output

    for fold in (0, 1):
        found, expected = (epochs_of(folder / "run", fold) for folder in (together, alone))
        assert len(expected) == TRAINING["epochs"]
        for row, other in zip(found, expected, strict=True):
            for name in ("learning_rate", "gradient_norm", "train_loss", "validation_loss"):
                np.testing.assert_allclose(float(row[name]), float(other[name]), rtol=1e-5)
    runs = [open_run(folder / "run") for folder in (together, alone)]
    for one, other in zip(*map(params_of, runs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
    # One process writes, but for the predictions, of which each notes its own: fold 1 has three cases.
    noted, none = (Path(f"fold_{fold}/validation/finished_cases_1.json") for fold in (1, 0))
    assert files_of(together / "run") - files_of(alone / "run") == {noted, none}
    assert files_of(together / "run") > files_of(alone / "run")
    shares = [
        load_json(path, "a record")["cases"]
        for path in (together / "run" / noted.parent).glob("finished_cases*.json")
    ]
    assert sorted(map(len, shares)) == [1, 2]
    assert Path("scores/summary.json") in files_of(together / "run")


@pytest.mark.parametrize(
    ("environment", "devices"),
    [
        ({}, None),
        ({"CUDA_VISIBLE_DEVICES": ""}, None),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, None),
        ({"CUDA_VISIBLE_DEVICES": "3", "JAX_LOCAL_DEVICE_IDS": "0"}, None),
        ({"CUDA_VISIBLE_DEVICES": "3"}, [0]),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_STEP_TASKS_PER_NODE": "2(x3)"}, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_STEP_TASKS_PER_NODE": "1(x3)"}, [0, 1]),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, [0, 1, 2]),
        (
            {
                "CUDA_VISIBLE_DEVICES": "0,1",
                "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
                "SLURM_STEP_TASKS_PER_NODE": "1(x3)",
            },
            None,
        ),
    ],
)
def test_a_process_takes_all_gpus_that_are_its_own(monkeypatch, environment, devices):
    told = {}
    monkeypatch.setattr(jax.distributed, "initialize", told.update)
    for name in ("CUDA_VISIBLE_DEVICES", "JAX_LOCAL_DEVICE_IDS", *PROCESSES_A_MACHINE):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    join_processes()
    assert told["local_device_ids"] == devices


def test_an_error_ends_its_process_at_once():
    """JAX would let it wait for the others for minutes first, and end in stacks of C++."""
    told = told_to_processes(2)
    first, second = (
        subprocess.Popen(
            [sys.executable, "-c", ERROR_IN_ONE],
            env=os.environ | environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for environment in told
    )
    try:
        _, output = second.communicate(timeout=100)
        assert second.returncode == 1
        assert "error: no room here" in output
    finally:
        first.kill()
        first.communicate()
