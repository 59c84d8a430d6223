"""The optimizer against torch's trajectories and schedules."""

import contextlib
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden_data import GOLDEN

from jaxmamba3d.config import OptimConfig, TrainConfig
from jaxmamba3d.training.optimizer import learning_rate_at, make_optimizer, momentum_at

RADAM = json.loads((GOLDEN / "nnunet" / "radam.json").read_text())
RATES = json.loads((GOLDEN / "nnunet" / "lr.json").read_text())
ONE_CYCLE = OptimConfig(schedule="one_cycle")


@pytest.mark.parametrize("name", [name for name in RADAM if name.startswith("wd")])
def test_radam_follows_torch(name):
    """50 float64 steps on the recorded quadratic, the unrectified first five included."""
    options = RADAM[name]["kwargs"]
    optim = OptimConfig(
        learning_rate=options["lr"],
        weight_decay=options["weight_decay"],
        schedule="constant",
        gradient_clip=1e9,
    )
    with jax.enable_x64(True):
        A, c, x = (jnp.array(RADAM[key], jnp.float64) for key in ("A", "c", "x0"))
        optimizer = make_optimizer(optim, TrainConfig())
        state = optimizer.init(x)
        for expected in RADAM[name]["x"][1:]:
            updates, state = optimizer.update(A @ (x - c), state, x)
            x = optax.apply_updates(x, updates)
            np.testing.assert_allclose(x, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(("schedule", "lowest", "highest"), [("poly", 0.99, 0.99), ("one_cycle", 0.85, 0.95)])
def test_sgd_has_nesterovs_momentum(schedule, lowest, highest):
    optim = OptimConfig(
        optimizer="sgd", learning_rate=0.01, schedule=schedule, schedule_unit="step", gradient_clip=1e9
    )
    train = TrainConfig(epochs=1, steps_per_epoch=50)
    momenta = []
    with jax.enable_x64(True):
        A, c, x = (jnp.array(RADAM[key], jnp.float64) for key in ("A", "c", "x0"))
        optimizer = make_optimizer(optim, train)
        state = optimizer.init(x)
        expected, trace = np.asarray(x), np.zeros(x.shape)
        for step in range(50):
            rate, momentum = (
                float(at(optim, train, jnp.int32(step))) for at in (learning_rate_at, momentum_at)
            )
            g = np.asarray(A) @ (expected - np.asarray(c)) + optim.weight_decay * expected
            trace = g + momentum * trace
            expected = expected - rate * (g + momentum * trace)
            updates, state = optimizer.update(A @ (x - c), state, x)
            x = optax.apply_updates(x, updates)
            np.testing.assert_allclose(x, expected, rtol=1e-11, atol=1e-13)
            momenta.append(momentum)
    assert (min(momenta), max(momenta)) == pytest.approx((lowest, highest))


def test_radam_in_float32_rectifies_at_the_same_step():
    name = "wd3e-5_lr1e-1"
    optim = OptimConfig(learning_rate=0.1, schedule="constant", gradient_clip=1e9)
    A, c, x = (jnp.array(RADAM[key], jnp.float32) for key in ("A", "c", "x0"))
    optimizer = make_optimizer(optim, TrainConfig())
    state = optimizer.init(x)
    for expected in RADAM[name]["x"][1:]:
        updates, state = optimizer.update(A @ (x - c), state, x)
        x = optax.apply_updates(x, updates)
        np.testing.assert_allclose(x, expected, rtol=1e-3, atol=1e-4)


def test_schedules_are_the_published_ones():
    train = TrainConfig(epochs=300, steps_per_epoch=7)
    with jax.enable_x64(True):
        for epoch in range(300):
            for step in (7 * epoch, 7 * epoch + 6):
                cosine = learning_rate_at(OptimConfig(), train, step)
                np.testing.assert_allclose(cosine, RATES["cosine_Tmax100_eta5e-6"][epoch], rtol=1e-10)
                one_cycle = learning_rate_at(ONE_CYCLE, train, step)
                recorded = RATES["onecycle_300_pct0.1_fdf1e8_cos"][epoch]
                np.testing.assert_allclose(one_cycle, recorded, rtol=1e-6, atol=1e-18)
                beta1 = momentum_at(ONE_CYCLE, train, step)
                np.testing.assert_allclose(beta1, RATES["onecycle_beta1"][epoch], rtol=1e-10)
    assert momentum_at(OptimConfig(), train, 5) == 0.9


@pytest.mark.parametrize(("unit", "share"), [("epoch", 0.5), ("step", 353 / 700)])
def test_poly_is_nnunets(unit, share):
    optim = OptimConfig(learning_rate=1e-2, schedule="poly", schedule_unit=unit)
    train = TrainConfig(epochs=100, steps_per_epoch=7)
    for step, expected in ((0, 1e-2), (353, 1e-2 * (1 - share) ** 0.9), (777, 0.0)):
        assert learning_rate_at(optim, train, step) == pytest.approx(expected, rel=1e-6)
    assert learning_rate_at(optim, train, 699) > 0


def test_schedule_by_step_is_the_one_by_epoch_stretched():
    by_step = dataclasses.replace(ONE_CYCLE, schedule_unit="step")
    short = TrainConfig(epochs=3, steps_per_epoch=100)
    for step in (0, 29, 150, 299):
        recorded = RATES["onecycle_300_pct0.1_fdf1e8_cos"][step]
        np.testing.assert_allclose(learning_rate_at(by_step, short, step), recorded, rtol=1e-4, atol=1e-11)


@pytest.mark.parametrize(("epochs", "fits"), [(5, False), (19, False), (20, True)])
def test_a_cycle_too_short_to_rise_is_refused(epochs, fits):
    message = rf"train\.epochs must be at least 20 for optim\.schedule one_cycle, got {epochs}; set"
    with contextlib.nullcontext() if fits else pytest.raises(ValueError, match=message):
        make_optimizer(ONE_CYCLE, TrainConfig(epochs=epochs))


def test_one_cycle_moves_the_first_decay_rate_of_radam():
    """And corrects the bias by that of the step, as torch does."""
    optim = dataclasses.replace(ONE_CYCLE, schedule_unit="step", weight_decay=0.0, gradient_clip=1e9)
    train = TrainConfig(epochs=30, steps_per_epoch=1)
    with jax.enable_x64(True):
        optimizer = make_optimizer(optim, train)
        x = jnp.zeros(1)
        state, mu = optimizer.init(x), 0.0
        for step in range(5):  # of which none is rectified
            gradient, beta1 = 1.0 + step, float(momentum_at(optim, train, step))
            mu = beta1 * mu + (1 - beta1) * gradient
            expected = -learning_rate_at(optim, train, step) * mu / (1 - beta1 ** (step + 1))
            updates, state = optimizer.update(jnp.array([gradient]), state, x)
            np.testing.assert_allclose(updates, [expected], rtol=1e-12)


@pytest.mark.parametrize(("optimizer", "moved"), [("radam", 1.0), ("sgd", 1.99)])
def test_schedules_count_the_steps_that_were_left_out(optimizer, moved):
    """Whose optimizer state is that of before: the rate goes by the number of the step."""
    optim = OptimConfig(
        optimizer=optimizer, learning_rate=1.0, weight_decay=0.0, schedule_unit="step", cosine_period=10
    )
    train = TrainConfig(epochs=1, steps_per_epoch=1)
    optimizer = make_optimizer(optim, train)
    params = {"a": jnp.array([0.0])}
    for step in (0, 5):
        updates, _ = optimizer.update({"a": jnp.array([1.0])}, optimizer.init(params), params, step=step)
        np.testing.assert_allclose(updates["a"], [-moved * learning_rate_at(optim, train, step)], rtol=1e-5)


def test_clipping_and_coupled_decay():
    """The first step moves by rate * (clipped gradient + decay * parameter): no rectification yet."""
    optim = OptimConfig(learning_rate=0.5, weight_decay=0.1, gradient_clip=2.0, schedule="constant")
    optimizer = make_optimizer(optim, TrainConfig())
    params = {"a": jnp.array([3.0]), "b": jnp.array([-4.0])}
    gradients = {"a": jnp.array([6.0]), "b": jnp.array([8.0])}
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    np.testing.assert_allclose(updates["a"], [-0.5 * (6 * 0.2 + 0.3)], rtol=1e-5)
    np.testing.assert_allclose(updates["b"], [-0.5 * (8 * 0.2 - 0.4)], rtol=1e-5)


def test_a_cosine_by_step_has_its_period_in_epochs():
    by_step, by_epoch = OptimConfig(schedule_unit="step"), OptimConfig()
    train = TrainConfig(epochs=300, steps_per_epoch=7)
    for epoch in (0, 30, 100, 150):
        assert float(learning_rate_at(by_step, train, 7 * epoch)) == pytest.approx(
            float(learning_rate_at(by_epoch, train, 7 * epoch)), rel=1e-5
        )
