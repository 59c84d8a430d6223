"""A validation of an epoch, by steps made up here."""

import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np

from jaxmamba3d.config import TrainConfig
from jaxmamba3d.training.epoch import validation_epoch
from jaxmamba3d.training.mesh import make_mesh


def test_cases_without_a_finite_validation_loss_are_named(caplog):
    losses = iter([0.5, np.nan])

    def step(params, batch):
        counts = [np.ones(1)] * 3
        return np.float32(next(losses)), counts, batch["label"]

    def batch(*cases):
        label = np.zeros((2, 1, 1, 1), np.int16)
        return {"image": label[..., None].astype(np.float32), "label": label, "case": np.array(cases)}

    config = TrainConfig(validation_steps=2)
    state, batches = SimpleNamespace(params=None), iter([batch(0, 1), batch(2, 1)])
    mesh = make_mesh(2)
    with jax.set_mesh(mesh):
        validation = validation_epoch(state, step, batches, mesh, config, ["a", "b", "c"])
    assert np.isnan(validation.loss)
    assert "the validation loss is not finite, on patches of b, c" in caplog.text


def test_cpu_devices_that_xla_flags_ask_for_are_used():
    lines = (
        "import jax",
        "from jaxmamba3d.training import use_all_cores",
        "use_all_cores()",
        "print(jax.device_count())",
    )
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}
    environment.pop("JAX_NUM_CPU_DEVICES", None)
    call = [sys.executable, "-c", "; ".join(lines)]
    done = subprocess.run(call, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3"]
