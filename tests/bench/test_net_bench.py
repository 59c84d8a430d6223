"""`jaxmamba3d bench net`: whole training steps compiled for chips that are not here."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys

import jax
import pytest
from flax import nnx

from jaxmamba3d.bench.net import CompiledStep, _markdown
from jaxmamba3d.bench.shapes import PLANS, paper_net
from jaxmamba3d.nets import build_net

SMALL = """
import sys
from pathlib import Path
from jaxmamba3d.bench import net
from jaxmamba3d.config import NetConfig
net.use_tpu_compiler()
config = NetConfig(
    "multisegmamba", 1, 3, (8, 16), ((3, 3, 3),) * 2, ((1, 1, 1), (2, 2, 2)), (1, 1), (1,), dtype="bfloat16"
)
huge = (config, "huge", (512, 512, 512))
net.bench_nets([(config, "small", (16, 16, 16)), huge], 1, "v5e:2x2", Path(sys.argv[1]))
"""


@pytest.mark.parametrize(("name", "millions"), [("segmamba", 61.4), ("multisegmamba", 78.2)])
def test_the_papers_nets_have_the_papers_size(name, millions):
    net = nnx.eval_shape(lambda: build_net(paper_net(name, "brain_tumour"), rngs=nnx.Rngs(0)))
    size = sum(x.size for x in jax.tree.leaves(nnx.state(net, nnx.Param)))
    assert round(size / 1e6, 1) == millions


def test_patches_divide_by_the_strides():
    for dataset, plan in PLANS.items():
        strides = paper_net("resunet", dataset).total_stride
        assert all(size % stride == 0 for size, stride in zip(plan.patch, strides, strict=True))


def test_the_table():
    fits = CompiledStep(
        "resunet", "acdc", "bfloat16", True, "v5e:2x4", 8, 59_800_000, 1.25, 12.34, True, 60.2
    )
    too_big = dataclasses.replace(fits, tflops=None, memory_gib=None, fits=False)
    rows = _markdown([fits, too_big]).splitlines()
    assert rows[2] == "| resunet | acdc | bfloat16 | yes | v5e:2x4 | 8 | 59.8 M | 1.2 | 12.3 | yes | 60 |"
    assert rows[3].endswith("| 59.8 M | - | - | no | 60 |")


@pytest.mark.aot
def test_a_step_is_compiled_for_four_chips(tmp_path):
    """In a process of its own, because libtpu is set up by the environment."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install libtpu")
    environment = {k: v for k, v in os.environ.items() if k not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    done = subprocess.run(
        [sys.executable, "-c", SMALL, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    small, huge = json.loads((tmp_path / "net.json").read_text())
    assert small["fits"]
    assert small["batch"] == 4
    assert small["memory_gib"] < 1
    assert small["tflops"] > 0
    assert not huge["fits"]
    assert huge["memory_gib"] > 15.75
