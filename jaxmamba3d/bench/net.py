"""`jaxmamba3d bench net`: whole training steps, compiled for chips that need not be here."""

import dataclasses
import importlib.util
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from jaxmamba3d.augment import AugmentationPlan
from jaxmamba3d.checks import UnsupportedError, check_positive
from jaxmamba3d.config import NetConfig, OptimConfig, TrainConfig
from jaxmamba3d.files import write_json, write_text
from jaxmamba3d.labels import Labels
from jaxmamba3d.nets import build_net
from jaxmamba3d.ops.backend import BATCH_AXES, compile_for
from jaxmamba3d.training import make_optimizer
from jaxmamba3d.training.ahead import GIB, memory_needed
from jaxmamba3d.training.steps import init_state, make_train_step

GIB_OF = {"M": 1 / 1024, "G": 1, "T": 1024}


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """One training step as compiled.

    Args:
        net, dataset, dtype, remat: what was compiled.
        chips: topology, such as v5e:2x4.
        batch: of all chips.
        parameters: numbers of the net.
        tflops: of a step and chip as the compiler counts them, the scan kernels left out; None if it does not
            fit.
        memory_gib: of a chip: parameters, optimizer state, batch and temporaries; where it does not fit, the
            temporaries alone, if the compiler says.
        fits: whether a chip's memory holds that.
        seconds: that the compilation took.
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


def use_tpu_compiler() -> None:
    """Sets up libtpu as a compiler alone; to be called before JAX starts.

    Raises:
        UnsupportedError: libtpu is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UnsupportedError("compiling for TPUs needs libtpu: pip install libtpu")
    for name, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-4"),
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),  # no chip is taken, so others may compile beside
    ):
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")


def compile_train_step(
    config: NetConfig, dataset: str, patch: Sequence[int], batch_per_chip: int, chips: str
) -> CompiledStep:
    """Compiles the sharded training step that the training program runs.

    Args:
        config: the network.
        dataset: its name, for the table.
        patch: voxels.
        batch_per_chip: samples of each chip.
        chips: topology, such as v5e:2x4.

    Raises:
        ValueError: there is no such topology, or a batch below 1.
    """
    check_positive("batch_per_chip", batch_per_chip)
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=chips).devices
    except jax.errors.JaxRuntimeError as error:
        wish = "a topology such as v5e:2x4, v5p:2x2x1 or v6e:2x4"
        raise ValueError(f"chips must be {wish}, got {chips!r} ({str(error).splitlines()[0]})") from error
    mesh = Mesh(np.array(devices).reshape(-1, 1), BATCH_AXES)
    batch = batch_per_chip * len(devices)

    def placed(tree, *axes):
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

    started = time.perf_counter()
    with compile_for("tpu"), jax.set_mesh(mesh):
        net = nnx.eval_shape(lambda: build_net(config, rngs=nnx.Rngs(0)))
        optimizer = make_optimizer(OptimConfig(), TrainConfig())
        params = nnx.state(net, nnx.Param)
        graph = nnx.graphdef(net)
        state = jax.eval_shape(lambda p: init_state(nnx.merge(graph, p), optimizer), params)
        labels = Labels({"background": (0,)} | {f"class {k}": (k,) for k in range(1, config.num_classes)})
        plan = AugmentationPlan(tuple(patch))
        step = make_train_step(net, optimizer, labels=labels, batch_dice=False, augmentation=plan, seed=0)
        samples = {
            "image": jax.ShapeDtypeStruct((batch, *plan.initial_patch_size, config.in_channels), jnp.float32),
            "label": jax.ShapeDtypeStruct((batch, *plan.initial_patch_size), jnp.int16),
        }
        lowered = step.lower(placed(state), placed(samples, BATCH_AXES))
        tflops = None
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            needed = re.search(r"\(([\d.]+)([MGT])\) exceeds", str(error))
            fits, memory = False, needed and float(needed[1]) * GIB_OF[needed[2]]
        else:
            fits, memory = True, memory_needed(compiled) / GIB
            tflops = compiled.cost_analysis()["flops"] / 1e12
    return CompiledStep(
        net=config.name,
        dataset=dataset,
        dtype=config.dtype,
        remat=config.remat,
        chips=chips,
        batch=batch,
        parameters=sum(x.size for x in jax.tree.leaves(params)),
        tflops=tflops,
        memory_gib=memory,
        fits=fits,
        seconds=time.perf_counter() - started,
    )


def bench_nets(
    cases: Sequence[tuple[NetConfig, str, Sequence[int]]], batch_per_chip: int, chips: str, output: Path
) -> list[CompiledStep]:
    """Compiles a training step for each net, dataset's name and patch, and writes net.md and net.json."""
    output.mkdir(parents=True, exist_ok=True)
    rows = []
    for config, dataset, patch in tqdm(cases, desc="net", unit="step"):
        rows.append(compile_train_step(config, dataset, patch, batch_per_chip, chips))
        write_json(output / "net.json", [dataclasses.asdict(row) for row in rows])
        write_text(output / "net.md", _markdown(rows))
    return rows


def _markdown(rows: Sequence[CompiledStep]) -> str:
    columns = ("net", "dataset", "dtype", "remat", "chips", "batch", "parameters", "TFLOP a chip")
    columns += ("GiB a chip", "fits", "compiled in s")
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for row in rows:
        cells = [row.net, row.dataset, row.dtype, "yes" if row.remat else "no", row.chips, row.batch]
        cells += [f"{row.parameters / 1e6:.1f} M", "-" if row.tflops is None else f"{row.tflops:.1f}"]
        cells += ["-" if row.memory_gib is None else f"{row.memory_gib:.1f}", "yes" if row.fits else "no"]
        cells += [f"{row.seconds:.0f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"
