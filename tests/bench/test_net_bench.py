"""`jaxmamba3d bench net`: whole training steps, here and compiled for chips elsewhere."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from flax import nnx
from small_datasets import write_nnunet
from training_programs import write_config

from jaxmamba3d import cli
from jaxmamba3d import training as training_package
from jaxmamba3d.augment import AugmentationPlan
from jaxmamba3d.bench import chips
from jaxmamba3d.bench.floors import chip_rates
from jaxmamba3d.bench.net import MeasuredStep, _markdown, bench_nets
from jaxmamba3d.bench.shapes import PLANS, paper_net
from jaxmamba3d.bench.trainings import Training
from jaxmamba3d.checks import UnsupportedError
from jaxmamba3d.config import NetConfig, OptimConfig, TrainConfig
from jaxmamba3d.data import plan_workspace
from jaxmamba3d.labels import Labels
from jaxmamba3d.nets import abstract_net, build_net
from jaxmamba3d.training import Task, compilation

SIZE = ((8, 16), ((3, 3, 3),) * 2, ((1, 1, 1), (2, 2, 2)), (1, 1), (1,))
LABELS = Labels({"background": (0,), "a": (1,), "b": (2,)})
ELSEWHERE = """
import sys
from pathlib import Path
from jaxmamba3d.bench import chips, net
chips.use_compiler_for("{topology}")
from test_net_bench import training
net.bench_nets([{trainings}], Path(sys.argv[1]), topology="{topology}")
"""


def training(net, size, **options):
    """Of a small net on cubes of so many voxels."""
    config = NetConfig(net, 1, 3, *SIZE, dtype="bfloat16")
    task = Task(2, 1, LABELS, False, AugmentationPlan((size,) * 3))
    return Training(f"cube {size}", config, task, OptimConfig(), TrainConfig(**options))


def test_the_papers_nets_have_the_papers_size():
    net = abstract_net(paper_net("segmamba", "brain_tumour"))
    size = sum(x.size for x in jax.tree.leaves(nnx.state(net, nnx.Param)))
    assert round(size / 1e6, 1) == 61.4


def test_patches_divide_by_the_strides():
    for dataset, plan in PLANS.items():
        strides = paper_net("resunet", dataset).total_stride
        assert all(size % stride == 0 for size, stride in zip(plan.patch, strides, strict=True))


def test_the_table():
    fits = MeasuredStep(
        "resunet", "acdc", "bfloat16", True, "v5e:2x4", 8, 59_800_000, 1.25, 12.34, True, 60.2
    )
    too_big = dataclasses.replace(fits, tflops=None, memory_gib=None, fits=False)
    rows = _markdown([fits, too_big]).splitlines()
    assert rows[2] == "| resunet | acdc | bfloat16 | yes | v5e:2x4 | 8 | 59.8 M | 1.2 | 12.3 | yes | 60 |"
    assert rows[3].endswith("| 59.8 M | - | - | no | 60 |")
    timed = dataclasses.replace(fits, milliseconds=123.45, spread=0.61, patches_per_second=64.8)
    rows = _markdown([timed, too_big]).splitlines()
    assert rows[0].endswith("| compiled in s | ms per step | ± ms | patches/s |")
    assert rows[2].endswith("| yes | 60 | 123.5 | 0.6 | 64.8 |")
    assert rows[3].endswith("| no | 60 | - | - | - |")


def test_steps_are_timed_here(tmp_path):
    """On the eight devices of the tests, in two parts of a batch, with shared parameters."""
    here = training("resunet", 8, accumulate=2, shard_parameters=2)
    (row,) = bench_nets([here], tmp_path, batch_per_chip=1, steps=3)
    assert row.chips == "8 x cpu"
    assert row.batch == 16
    assert row.fits
    assert row.milliseconds > 0
    assert row.patches_per_second == pytest.approx(16e3 / row.milliseconds)
    parameters = nnx.state(build_net(here.net, rngs=nnx.Rngs(0)), nnx.Param)
    assert row.parameters == sum(x.size for x in jax.tree.leaves(parameters))
    assert json.loads((tmp_path / "net.json").read_text()) == [dataclasses.asdict(row)]
    assert (tmp_path / "net.md").read_text() == _markdown([row])


def test_what_does_not_fit_is_a_row(tmp_path, monkeypatch):
    monkeypatch.setattr(compilation, "memory_limit", lambda _: 1)
    (row,) = bench_nets([training("resunet", 8)], tmp_path)
    assert not row.fits
    assert row.memory_gib > 0
    assert row.milliseconds is None


def test_a_configs_step(tmp_path, monkeypatch, capsys):
    dataset = write_nnunet(tmp_path / "Dataset001_Small", channels=2)
    config = write_config(tmp_path, dataset, batch_size=2)
    monkeypatch.setattr(sys, "argv", ["jaxmamba3d", "bench", "net", str(config), "--steps", "1"])
    monkeypatch.setattr(training_package, "use_all_cores", lambda: None)  # JAX has started
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="run/work: not a work folder; make one with"):
        cli.bench()
    plan_workspace(dataset, tmp_path / "run" / "work", processes=1)
    cli.bench()
    assert "| resunet | Dataset001_Small | float32 | no | 8 x cpu | 8 |" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "bench").iterdir()} == {"net.json", "net.md"}


@pytest.mark.parametrize(
    ("options", "batch", "message"),
    [
        ({}, 0, "batch_per_chip must be greater than 0, got 0"),
        ({"shard_parameters": 3}, 1, "train.shard_parameters must be a divisor of the 8 devices"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(tmp_path, options, batch, message):
    with pytest.raises(ValueError, match=message):
        bench_nets([training("resunet", 8, **options)], tmp_path, batch_per_chip=batch)
    with pytest.raises(ValueError, match="steps must be at least 0, got -1"):
        bench_nets([], tmp_path, steps=-1)


@pytest.mark.parametrize("name", chips.GPUS)
def test_a_gpu_is_described_by_its_rates_too(name):
    gpu = chips.GPUS[name]
    rates = chip_rates(gpu.name)
    text = gpu.target_config()
    assert f"core_count: {rates.processors} " in text
    assert f"memory_bandwidth: {rates.bytes:.0f} " in text


@pytest.mark.parametrize(("share", "taken"), [("", 0.75), ("0.95", 0.95), (".5", 0.5), ("1.0", 1.0)])
def test_jax_takes_the_share_of_a_gpu_that_it_is_told_to(monkeypatch, share, taken):
    monkeypatch.setenv(chips.MEMORY_SHARE, share)
    gpu = chips.GPUS["t4"]
    assert gpu.memory_for_jax == int(taken * gpu.memory)


@pytest.mark.parametrize("share", ["0", "0.0", "1.5", "95%"])
def test_what_is_no_share_of_a_gpu_is_refused(monkeypatch, share):
    monkeypatch.setenv(chips.MEMORY_SHARE, share)
    message = f"XLA_PYTHON_CLIENT_MEM_FRACTION must be a number above 0 and at most 1, got '{share}'"
    with pytest.raises(ValueError, match=message):
        _ = chips.GPUS["t4"].memory_for_jax


def test_chips_that_nobody_can_compile_for(monkeypatch):
    for name in ("h300", "h100:0", "v5e"):
        with pytest.raises(ValueError, match=rf"^aot must be TPUs such as .*, got '{name}'$"):
            chips.use_compiler_for(name)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    for name, install in (
        ("v5e:2x4", "libtpu"),
        ("h100", r"'jax\[cuda12\]'"),
        ("a100:8", r"'jax\[cuda12\]'"),
    ):
        with pytest.raises(UnsupportedError, match=f"needs their compiler: pip install {install}$"):
            chips.use_compiler_for(name)


@pytest.mark.parametrize(("chip", "flags"), [("a100", f"{chips.CUBLAS_ALONE} --mine"), ("v5e:2x2", "--mine")])
def test_products_are_not_tuned_without_a_gpu(monkeypatch, chip, flags):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: True)
    monkeypatch.setattr(os, "environ", {"XLA_FLAGS": "--mine"})
    chips.use_compiler_for(chip)
    assert os.environ["XLA_FLAGS"] == flags


def compiled_elsewhere(topology, program, folder):
    """The rows of a program, run in a process of its own, because compilers are set up by the environment."""
    environment = {k: v for k, v in os.environ.items() if k not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE.format(topology=topology, trainings=program), str(folder)],
        env=environment | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder / "net.json").read_text())


TPUS = "training('multisegmamba', 8, accumulate=2, shard_parameters=2), training('multisegmamba', 512)"
GPUS = "training('multisegmamba', 8, shard_parameters=2), training('resunet', 768)"


@pytest.mark.aot
@pytest.mark.parametrize(
    ("topology", "compiler", "program", "batch", "memory_gib"),
    [
        ("v5e:2x2", "libtpu", TPUS, 8, 15.75),
        ("h100:2", "jax_cuda12_plugin", GPUS, 2, 59),
        ("t4:2", "jax_cuda12_plugin", GPUS, 2, 11),  # without Triton
    ],
)
def test_steps_are_compiled_for_chips_elsewhere(topology, compiler, program, batch, memory_gib, tmp_path):
    if importlib.util.find_spec(compiler) is None:
        pytest.skip(f"{compiler} is not installed: pip install libtpu, or 'jax[cuda12]'")
    small, huge = compiled_elsewhere(topology, program, tmp_path)
    assert small["fits"]
    assert small["batch"] == batch
    assert 0 < small["memory_gib"] < 1
    if topology.startswith("v5e"):
        assert small["tflops"] > 0
    assert small["milliseconds"] is None
    assert not huge["fits"]
    assert huge["memory_gib"] > memory_gib
