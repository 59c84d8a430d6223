"""`jaxmamba3d bench`: argument parsing only; what a command runs is imported when it is called."""

import sys
from pathlib import Path
from typing import Literal

import tyro

from jaxmamba3d.bench.shapes import PLANS, SCANNING_NETS, paper_shapes
from jaxmamba3d.config import NETS, DataConfig

LONGEST_ON_CPU = 4096
"""Tokens of the longest scan that `bench scan` measures on a CPU unasked: the longer ones take hours."""


def bench_scan(
    output: Path = Path("bench"),
    implementations: tuple[str, ...] = (),
    datasets: tuple[str, ...] = tuple(PLANS),
    nets: tuple[str, ...] = SCANNING_NETS,
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16"),
    blocks: tuple[str, ...] = (),
    repeats: int = 5,
    longest: int | None = None,
) -> None:
    """Time the implementations of the selective scan on the shapes of the paper's networks.

    Args:
        output: folder of scan.md, scan.json and scan.png, written after each scan.
        implementations: which to measure; default: on CPUs those of XLA, elsewhere
            xla_associative and the kernels.
        datasets: whose patches: brain_tumour, acdc, synapse.
        nets: whose stages.
        dtypes: of the sequences.
        blocks: sizes of the kernels' blocks that are also measured, such as stride=1 or chunk=64,stride=1.
        repeats: calls of which the median is taken.
        longest: leave out longer scans (tokens); default: 4096 on CPUs, none elsewhere.
    """
    import jax

    from jaxmamba3d.bench import scan
    from jaxmamba3d.ops.selective_scan.blocks import BLOCKS

    on_cpu = jax.default_backend() == "cpu"
    if on_cpu and longest is None:
        longest = LONGEST_ON_CPU
    if not implementations:
        # One token after another takes a GPU minutes for the longest scans.
        others = ("xla_sequential",) if on_cpu else tuple(BLOCKS)
        implementations = ("xla_associative", *others)
    shapes = paper_shapes(datasets, nets)
    scan.bench_scan(shapes, implementations, dtypes, output, blocks=blocks, repeats=repeats, longest=longest)
    sys.stdout.write((output / "scan.md").read_text(encoding="utf-8"))


def bench_net(
    configs: tyro.conf.Positional[tuple[str, ...]] = (),
    /,
    aot: str | None = None,
    output: Path = Path("bench"),
    datasets: tuple[str, ...] = tuple(PLANS),
    nets: tuple[str, ...] = NETS,
    dtype: Literal["float32", "bfloat16"] = "bfloat16",
    remat: bool = True,
    batch_per_chip: int = 1,
    steps: int = 10,
) -> None:
    """Compile and time training steps of the paper's networks, or of configs, and say what memory they need.

    Args:
        configs: config files, CONFIG.py or CONFIG.py:WORD, whose data are planned; none: the paper's nets.
        aot: chips to compile for, of which none need be here: TPUs such as v5e:2x4, v5p:2x2x1 or v6e:2x4
            (needs libtpu), or GPUs such as h100 or a100:8 (needs jax[cuda12]; without cuDNN's own memory);
            default: the devices here, on which steps are timed too.
        output: folder of net.md and net.json, written after each step.
        datasets: of the paper, whose patches, channels and classes are taken: brain_tumour, acdc, synapse.
        nets: of the paper.
        dtype: that the paper's networks compute in.
        remat: recompute each Mamba block of the paper's networks in the backward pass.
        batch_per_chip: patches that a chip holds at once.
        steps: to time; 0: none.
    """
    from jaxmamba3d.bench import chips, net, trainings
    from jaxmamba3d.training import use_all_cores

    if aot is None:
        use_all_cores()
    else:
        chips.use_compiler_for(aot)
    chosen = [trainings.config_training(config) for config in configs] or [
        trainings.paper_training(name, dataset, dtype=dtype, remat=remat)
        for dataset in datasets
        for name in nets
    ]
    net.bench_nets(chosen, output, batch_per_chip=batch_per_chip, topology=aot, steps=steps)
    sys.stdout.write((output / "net.md").read_text(encoding="utf-8"))


def bench_pipeline(
    work: tyro.conf.Positional[Path],
    /,
    output: Path = Path("bench"),
    configuration: str = "3d_fullres",
    patch_size: tuple[int, int, int] | None = None,
    batch_size: int | None = None,
    threads: int = DataConfig.read_threads,
    seconds: float = 5.0,
    repeats: int = 5,
) -> None:
    """Time reading and augmenting training patches, alone and together, and draw what is done to one.

    Args:
        work: the folder that `jaxmamba3d plan` made, preprocessed.
        output: folder of pipeline.md, pipeline.json and augmentation.png.
        configuration: which of the plans' configurations.
        patch_size: voxels X Y Z that the net sees; default: the plans'.
        batch_size: patches; default: the plans'.
        threads: that read ahead.
        seconds: of each repeat.
        repeats: of which the median is taken.
    """
    from jaxmamba3d.bench import pipeline
    from jaxmamba3d.data import open_workspace
    from jaxmamba3d.training import use_all_cores

    workspace = open_workspace(work)
    use_all_cores()
    pipeline.bench_pipeline(
        workspace,
        output,
        configuration=configuration,
        patch_size=patch_size,
        batch_size=batch_size,
        threads=threads,
        seconds=seconds,
        repeats=repeats,
    )
    sys.stdout.write((output / "pipeline.md").read_text(encoding="utf-8"))


COMMANDS = {"scan": bench_scan, "net": bench_net, "pipeline": bench_pipeline}
