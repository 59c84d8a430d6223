"""RAdam and SGD as PyTorch computes them, and the published learning-rate schedules."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmamba3d.checks import check_that
from jaxmamba3d.config import OptimConfig, TrainConfig

MOMENTUM = {"radam": 0.9, "sgd": 0.99}
BETA2, EPSILON = 0.999, 1e-8
RECTIFIED_ABOVE = 5.0
# torch's OneCycleLR: the first rate is the highest / 25, and the momentum moves against the rate.
ONE_CYCLE_DIV_FACTOR, LOWEST_MOMENTUM, HIGHEST_MOMENTUM = 25.0, 0.85, 0.95
POLY_EXPONENT = 0.9


def make_optimizer(optim: OptimConfig, train: TrainConfig) -> optax.GradientTransformationExtraArgs:
    """Clips the gradient's global norm, adds the weight decay to it, and takes a step of RAdam or SGD.

    g = clip(gradient) + weight_decay x
    radam: m, v = running means of g and g^2;  with bias-corrected m^ and v^
    x moves by -rate r_t m^ / sqrt(v^) from step 6 on, where the rectification r_t exists, before by -rate m^.
    sgd: m = g + momentum m;  x moves by -rate (g + momentum m).

    Args:
        optim: optimizer, rates, decay, clipping and schedule.
        train: length of the training, which the schedules refer to.

    Returns:
        An optax transformation of all parameters; its state holds the count of finished steps. The schedules
        go by that, or by the `step` given to `update`, which also counts the steps that were left out.

    Raises:
        ValueError: one_cycle has too few epochs (or steps) to rise in.

    Source: `torch.nn.utils.clip_grad_norm_`, `torch.optim.RAdam` and `torch.optim.SGD(nesterov=True)`.
    """
    _check_schedule(optim, train)
    return optax.chain(
        _clip_by_global_norm(optim.gradient_clip),
        optax.add_decayed_weights(optim.weight_decay),
        {"radam": _radam, "sgd": _sgd}[optim.optimizer](
            partial(learning_rate_at, optim, train), partial(momentum_at, optim, train)
        ),
    )


def learning_rate_at(optim: OptimConfig, train: TrainConfig, step: Any) -> Any:
    """Learning rate of the step that follows `step` finished ones.

    cosine: floor + (highest - floor) / 2 (1 + cos(pi e / period)), e in epochs; rises again after the period.
    one_cycle: from highest / 25 to highest and on to highest / 25 / final_div_factor, along two half cosines.
    poly: highest (1 - e / epochs)^0.9; after the last epoch 0.

    Args:
        optim, train: as in `make_optimizer`.
        step: finished steps, a Python int or an integer array; may be traced.

    Returns:
        A scalar, float; the same throughout an epoch unless `schedule_unit` is "step".

    Source: torch's CosineAnnealingLR (closed form) and OneCycleLR, stepped once an epoch by nnU-Net;
    nnU-Net's PolyLRScheduler.
    """
    if optim.schedule == "constant":
        return optim.learning_rate
    if optim.schedule == "one_cycle":
        first = optim.learning_rate / ONE_CYCLE_DIV_FACTOR
        return _one_cycle(optim, train, step, first, optim.learning_rate, first / optim.final_div_factor)
    if optim.schedule == "poly":
        poly = optax.polynomial_schedule(optim.learning_rate, 0.0, POLY_EXPONENT, _length(optim, train))
        return poly(_position(optim, train, step))
    period = optim.cosine_period * (1 if optim.schedule_unit == "epoch" else train.steps_per_epoch)
    return _cosine(optim.learning_rate, optim.cosine_floor, _position(optim, train, step) / period)


def momentum_at(optim: OptimConfig, train: TrainConfig, step: Any) -> Any:
    """RAdam's beta1 (0.9) or SGD's momentum (0.99) of that step.

    one_cycle moves it from 0.95 to 0.85 and back, as torch's `cycle_momentum` does. Args and Returns are
    those of `learning_rate_at`.
    """
    if optim.schedule != "one_cycle":
        return MOMENTUM[optim.optimizer]
    return _one_cycle(optim, train, step, HIGHEST_MOMENTUM, LOWEST_MOMENTUM, HIGHEST_MOMENTUM)


def _position(optim, train, step):
    return step // train.steps_per_epoch if optim.schedule_unit == "epoch" else step


def _length(optim, train):
    return train.epochs * (1 if optim.schedule_unit == "epoch" else train.steps_per_epoch)


def _turning_points(optim, train):
    """Positions of the highest rate and of the end."""
    total = _length(optim, train)
    return optim.warmup_fraction * total - 1, total - 1


def _check_schedule(optim, train):
    if optim.schedule == "one_cycle":
        peak, end = _turning_points(optim, train)
        by_epoch = optim.schedule_unit == "epoch"
        length = "train.epochs" if by_epoch else "train.epochs x train.steps_per_epoch"
        wanted = f"at least {2 / optim.warmup_fraction:.0f} for optim.schedule one_cycle"
        hint = "; set optim.schedule_unit to step" if by_epoch else ""
        check_that(peak >= 1, length, wanted, f"{end + 1}{hint}")


def _cosine(start, end, share):
    """From start (share 0) to end (share 1) along half a cosine."""
    return end + (start - end) / 2 * (1 + jnp.cos(math.pi * share))


def _one_cycle(optim, train, step, first, middle, last):
    peak, end = _turning_points(optim, train)
    position = _position(optim, train, step)
    rising = _cosine(first, middle, position / peak)
    falling = _cosine(middle, last, (position - peak) / (end - peak))
    return jnp.where(position <= peak, rising, falling)


def _clip_by_global_norm(largest: float) -> optax.GradientTransformation:
    """torch's: the gradient times min(1, largest / (norm + 1e-6)), which optax's differs from by the 1e-6."""

    def update(updates, state, params=None):
        factor = jnp.minimum(1.0, largest / (optax.tree.norm(updates) + 1e-6))
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _radam(learning_rate, momentum) -> optax.GradientTransformationExtraArgs:
    """torch's: epsilon is added before the bias correction (optax: after), and rho is exact in float32."""
    largest_rho = 2 / (1 - BETA2) - 1

    def init(params):
        zeros = optax.tree.zeros_like
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros(params), zeros(params))

    def update(updates, state, params=None, *, step=None):
        position = state.count if step is None else step
        rate, decay = learning_rate(position), momentum(position)
        mu = optax.tree.update_moment(updates, state.mu, decay, 1)
        nu = optax.tree.update_moment(updates, state.nu, BETA2, 2)
        count = state.count + 1
        finished = count.astype(jnp.result_type(float))
        correction1 = 1 - decay**finished
        # expm1 keeps 1 - beta2^t exact for small t, where rho is a difference of large numbers.
        correction2 = -jnp.expm1(finished * math.log(BETA2))
        rho = largest_rho - 2 * finished * (1 - correction2) / correction2
        rectified = rho > RECTIFIED_ABOVE
        safe_rho = jnp.where(rectified, rho, RECTIFIED_ABOVE + 1)
        rectification = jnp.sqrt(
            ((safe_rho - 4) * (safe_rho - 2) * largest_rho)
            / ((largest_rho - 4) * (largest_rho - 2) * safe_rho)
        )

        def step_of(m, v):
            adaptive = rectification * jnp.sqrt(correction2) / (jnp.sqrt(v) + EPSILON)
            return (-rate * (m / correction1) * jnp.where(rectified, adaptive, 1.0)).astype(m.dtype)

        return jax.tree.map(step_of, mu, nu), optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)


class _SGDState(NamedTuple):
    count: jax.Array
    trace: optax.TraceState


def _sgd(learning_rate, momentum) -> optax.GradientTransformationExtraArgs:
    """optax's `sgd` with Nesterov's momentum, both of whose rates go by the number of the step."""

    def init(params):
        return _SGDState(jnp.zeros((), jnp.int32), optax.trace(0.0).init(params))

    def update(updates, state, params=None, *, step=None):
        position = state.count if step is None else step
        traced, trace = optax.trace(momentum(position), nesterov=True).update(updates, state.trace)
        steps = jax.tree.map(lambda g: (-learning_rate(position) * g).astype(g.dtype), traced)
        return steps, _SGDState(state.count + 1, trace)

    return optax.GradientTransformationExtraArgs(init, update)
