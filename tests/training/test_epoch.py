"""Epochs and their validations, by steps made up here."""

import itertools
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxmamba3d.config import TrainConfig
from jaxmamba3d.training.epoch import EpochProgress, device_memory_gib, train_epoch, validation_epoch
from jaxmamba3d.training.mesh import make_mesh

CASES = ["a", "b", "c"]


def train(losses, so_far=None, stop_after=None, **config):
    """Takes steps that have such losses, and such norms times ten; the state counts them."""
    so_far = EpochProgress() if so_far is None else so_far
    asked = []

    def step(state, batch):
        loss = np.float32(losses[state])
        return state + 1, {"loss": loss, "gradient_norm": 10 * loss, "finite": np.isfinite(loss)}

    def should_stop():
        asked.append(len(asked) + 1)
        return len(asked) == stop_after

    batches = itertools.repeat({"image": np.zeros((2, 1, 1, 1, 1), np.float32), "case": np.array([2, 1])})
    mesh = make_mesh(2)
    with jax.set_mesh(mesh):
        found = train_epoch(
            len(so_far.losses),
            step,
            batches,
            mesh,
            TrainConfig(steps_per_epoch=len(losses), **config),
            epoch=4,
            so_far=so_far,
            case_names=CASES,
            should_stop=should_stop,
        )
    return *found, so_far


def test_an_epoch_notes_its_steps_and_how_long_they_took():
    state, stopped, so_far = train([3.0, 1.0, 2.0])
    assert (state, stopped) == (3, False)
    assert (so_far.losses, so_far.norms) == ([3.0, 1.0, 2.0], [30.0, 10.0, 20.0])
    assert (so_far.mean_loss(), so_far.largest_norm()) == (2.0, 30.0)
    assert 0 < so_far.waited < so_far.seconds


def test_an_epoch_that_was_stopped_goes_on_where_it_was():
    losses = [3.0, 1.0, 2.0, 5.0]
    state, stopped, so_far = train(losses, stop_after=2)
    assert (state, stopped, so_far.losses) == (2, True, [3.0, 1.0])
    so_far.seconds, so_far.waited = 1000.0, 500.0
    state, stopped, so_far = train(losses, so_far)
    assert (state, stopped, so_far.losses) == (4, False, losses)
    assert so_far.seconds > 1000 > so_far.waited > 500


def test_an_epoch_is_not_stopped_after_its_last_step():
    assert train([1.0, 2.0], stop_after=2)[:2] == (2, False)


def test_steps_that_are_not_finite_are_skipped_and_said(caplog):
    _, _, so_far = train([1.0, np.inf, 3.0], non_finite="skip")
    assert so_far.finite == [True, False, True]
    assert (so_far.mean_loss(), so_far.largest_norm()) == (2.0, 30.0)
    said = "step 2 of epoch 5 is not finite, on patches of b, c: loss inf, gradient norm inf: skipped"
    assert caplog.text.rstrip().endswith(said)


def test_an_epoch_of_no_finite_step_ends_the_training():
    with pytest.raises(FloatingPointError, match=r"no step of epoch 5 was finite; .* unless it is$"):
        train([np.nan, np.nan], non_finite="skip")
    with pytest.raises(FloatingPointError, match=r"step 1 of epoch 5 .*, or set train.non_finite to skip"):
        train([np.nan, 1.0])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_cases_without_a_finite_validation_loss_are_named(caplog, bad):
    losses = iter([0.5, bad])

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
    assert not np.isfinite(validation.loss)
    assert "the validation loss is not finite, on patches of b, c" in caplog.text


def test_a_validation_sums_counts_over_its_batches():
    """The Dice is that of all their patches together."""
    results = iter([(0.5, (1, 0, 0)), (1.5, (0, 6, 2))])

    def step(params, batch):
        loss, counts = next(results)
        return np.float32(loss), [np.float32([count]) for count in counts], batch["label"]

    label = np.zeros((2, 1, 1, 1), np.int16)
    batch = {"image": label[..., None].astype(np.float32), "label": label, "case": np.array([0, 1])}
    mesh = make_mesh(2)
    with jax.set_mesh(mesh):
        state, config = SimpleNamespace(params=None), TrainConfig(validation_steps=2)
        validation = validation_epoch(state, step, itertools.repeat(batch), mesh, config, CASES)
    assert (validation.loss, validation.dice) == (1.0, (pytest.approx(0.2),))


def test_the_memory_of_a_process_is_that_of_its_fullest_device(monkeypatch):
    peaks = [{"peak_bytes_in_use": 3 * 2**30}, None, {"peak_bytes_in_use": 2**31}, {}]
    devices = [SimpleNamespace(memory_stats=lambda found=found: found) for found in peaks]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert device_memory_gib() == 3
    monkeypatch.setattr(jax, "local_devices", lambda: devices[1:2])
    assert np.isnan(device_memory_gib())


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
