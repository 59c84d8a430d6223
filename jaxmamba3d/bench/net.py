"""`jaxmamba3d bench net`: whole training steps, timed on the devices here or compiled for chips elsewhere."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from tqdm import tqdm

from jaxmamba3d.bench.chips import chips_elsewhere
from jaxmamba3d.bench.timing import Timing, time_calls
from jaxmamba3d.bench.trainings import Training
from jaxmamba3d.checks import check_that
from jaxmamba3d.files import write_json, write_text
from jaxmamba3d.labels import Labels
from jaxmamba3d.nets import abstract_net, build_net
from jaxmamba3d.ops.backend import compile_for
from jaxmamba3d.training import make_optimizer
from jaxmamba3d.training.compilation import StepTooLarge, compile_fitting, lower_train_step, memory_needed
from jaxmamba3d.training.mesh import mesh_over
from jaxmamba3d.training.steps import abstract_state, init_state
from jaxmamba3d.wording import markdown_table

WARM_UP = 2
"""Steps before those that are timed."""


@dataclasses.dataclass(frozen=True)
class MeasuredStep:
    """One training step as compiled.

    Args:
        net, dataset, dtype, remat: what was compiled.
        chips: topology, such as v5e:2x4, or the devices here.
        batch: of all chips.
        parameters: numbers of the net.
        tflops: of a step and chip as the compiler counts them, the scan kernels left out; None if it does not
            fit or the compiler does not say.
        memory_gib: of a chip: parameters, optimizer state, batch and temporaries; where it does not fit
            into a TPU, the temporaries alone, if the compiler says.
        fits: whether a chip's memory holds that.
        seconds: that the compilation took.
        milliseconds, spread: median of the steps and distance of their quartiles; None where none was taken.
        patches_per_second: of all chips.
    """

    net: str
    dataset: str
    dtype: str
    remat: bool
    chips: str
    batch: int
    parameters: int
    tflops: float | None
    memory_gib: float | None
    fits: bool
    seconds: float
    milliseconds: float | None = None
    spread: float | None = None
    patches_per_second: float | None = None


def compile_elsewhere(training: Training, batch_per_chip: int, topology: str) -> MeasuredStep:
    """Compiles a sharded training step for chips that need not be here.

    Args:
        training: what decides the step.
        batch_per_chip: patches.
        topology: of the chips; see `chips_elsewhere`.

    Raises:
        ValueError: there is no such topology, the chips do not divide by `train.shard_parameters`, or a batch
            is below 1.
    """
    chips = chips_elsewhere(topology)
    training = training.on_chips(len(chips.devices), batch_per_chip)
    mesh = mesh_over(chips.devices, training.train.shard_parameters)
    with compile_for(chips.platform, chips.devices):
        return _measure(training, mesh, topology, steps=0, limit=chips.memory)


def time_here(training: Training, batch_per_chip: int, steps: int) -> MeasuredStep:
    """Compiles a training step for all devices here and takes it, on noise.

    Args:
        training: what decides the step.
        batch_per_chip: patches.
        steps: how many are timed; 0: the step is compiled alone.

    Raises:
        ValueError: the devices do not divide by `train.shard_parameters`, or a batch is below 1.
    """
    devices = jax.devices()
    training = training.on_chips(len(devices), batch_per_chip)
    mesh = mesh_over(devices, training.train.shard_parameters)
    return _measure(training, mesh, f"{len(devices)} x {devices[0].device_kind}", steps=steps)


def bench_nets(
    trainings: Sequence[Training],
    output: Path,
    *,
    batch_per_chip: int = 1,
    topology: str | None = None,
    steps: int = 10,
) -> list[MeasuredStep]:
    """Measures a step of each training, and writes net.md and net.json after each.

    Args:
        trainings: what decides the steps.
        output: folder; made if missing.
        batch_per_chip: patches.
        topology: see `compile_elsewhere`; None: the devices here.
        steps: see `time_here`.

    Raises:
        ValueError: fewer than no steps; or see `compile_elsewhere` and `time_here`.
    """
    check_that(steps >= 0, "steps", "at least 0", steps)
    output.mkdir(parents=True, exist_ok=True)
    rows = []
    for training in tqdm(trainings, desc="net", unit="step"):
        if topology is None:
            rows.append(time_here(training, batch_per_chip, steps))
        else:
            rows.append(compile_elsewhere(training, batch_per_chip, topology))
        write_json(output / "net.json", [dataclasses.asdict(row) for row in rows])
        write_text(output / "net.md", _markdown(rows))
    return rows


def _measure(
    training: Training, mesh: Mesh, chips: str, *, steps: int, limit: int | None = None
) -> MeasuredStep:
    optimizer = make_optimizer(training.optim, training.train)
    started = time.perf_counter()
    with jax.set_mesh(mesh):
        net = abstract_net(training.net)
        state = abstract_state(net, optimizer, mesh)
        lowered = lower_train_step(net, optimizer, training.train, training.task, state, mesh)
        try:
            compiled = compile_fitting(lowered, mesh, limit=limit)
            memory = memory_needed(compiled)
        except StepTooLarge as error:
            compiled, memory = None, error.needed
    seconds = time.perf_counter() - started
    timing = _time_steps(compiled, training, mesh, steps) if compiled and steps else None
    batch = training.task.batch_size
    return MeasuredStep(
        net=training.net.name,
        dataset=training.dataset,
        dtype=training.net.dtype,
        remat=training.net.remat,
        chips=chips,
        batch=batch,
        parameters=sum(x.size for x in jax.tree.leaves(state.params)),
        tflops=compiled and _tflops(compiled),
        memory_gib=memory and memory / 2**30,
        fits=compiled is not None,
        seconds=seconds,
        milliseconds=timing and timing.median * 1e3,
        spread=timing and timing.spread * 1e3,
        patches_per_second=timing and batch / timing.median,
    )


def _tflops(compiled: jax.stages.Compiled) -> float | None:
    """None for GPUs that are not here, of which XLA does not say."""
    costs = compiled.cost_analysis()
    return costs and costs["flops"] / 1e12


def _time_steps(step: jax.stages.Compiled, training: Training, mesh: Mesh, steps: int) -> Timing:
    params = nnx.state(build_net(training.net, rngs=nnx.Rngs(0)), nnx.Param)
    state = init_state(params, make_optimizer(training.optim, training.train), mesh)
    image, label = (training.task.training_batch(mesh)[name] for name in ("image", "label"))
    key = jax.random.key(0)
    noise = {
        "image": jax.random.normal(key, image.shape, image.dtype),
        "label": jax.random.choice(key, _values(training.task.labels), label.shape),
    }
    batch = jax.device_put(noise, {"image": image.sharding, "label": label.sharding})

    def take_step() -> dict[str, jax.Array]:
        nonlocal state
        state, metrics = step(state, batch)
        return metrics

    for _ in range(WARM_UP):
        jax.block_until_ready(take_step())
    return time_calls(take_step, repeats=steps)


def _values(labels: Labels) -> jax.Array:
    return jnp.array(sorted(labels.declared), jnp.int16)


def _markdown(rows: Sequence[MeasuredStep]) -> str:
    columns = ["net", "dataset", "dtype", "remat", "chips", "batch", "parameters", "TFLOP per chip"]
    columns += ["GiB per chip", "fits", "compiled in s"]
    timed = any(row.milliseconds is not None for row in rows)
    if timed:
        columns += ["ms per step", "± ms", "patches/s"]

    def cells_of(row):
        cells = [row.net, row.dataset, row.dtype, "yes" if row.remat else "no", row.chips, row.batch]
        cells += [f"{row.parameters / 1e6:.1f} M", _number(row.tflops, 1), _number(row.memory_gib, 1)]
        cells += ["yes" if row.fits else "no", f"{row.seconds:.0f}"]
        if timed:
            cells += [_number(n, 1) for n in (row.milliseconds, row.spread, row.patches_per_second)]
        return cells

    return markdown_table(columns, map(cells_of, rows), words=5)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
