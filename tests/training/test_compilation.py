"""Training steps that are compiled before the first batch."""

import os
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxmamba3d.augment import AugmentationPlan
from jaxmamba3d.config import NetConfig, OptimConfig, TrainConfig
from jaxmamba3d.labels import Labels
from jaxmamba3d.nets import build_net
from jaxmamba3d.training import Task, compilation
from jaxmamba3d.training import mesh as meshes
from jaxmamba3d.training.mesh import make_mesh, mesh_over, shard_batch
from jaxmamba3d.training.optimizer import make_optimizer
from jaxmamba3d.training.steps import init_state

NET = NetConfig("resunet", 1, 3, (4, 8), ((3, 3, 3),) * 2, ((1, 1, 1), (2, 2, 2)), (1, 1), (1,))
PLAN = AugmentationPlan((8, 8, 8), rotate_and_scale=False, vary_intensities=False)
BATCH = 8
TASK = Task(BATCH, 1, Labels({"background": (0,), "a": (1,), "b": (2,)}), False, PLAN)
GIB = 2**30


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(BATCH, accumulate=2, shard_parameters=2)


@pytest.fixture(scope="module")
def started(mesh):
    """A state on the mesh, and its step, lowered."""
    net = build_net(NET, rngs=nnx.Rngs(0))
    train = TrainConfig(accumulate=2)
    optimizer = make_optimizer(OptimConfig(schedule="constant"), train)
    state = init_state(nnx.state(net, nnx.Param), optimizer, mesh)
    with jax.set_mesh(mesh):
        return state, compilation.lower_train_step(net, optimizer, train, TASK, state, mesh)


@pytest.fixture(scope="module")
def compiled(started, mesh):
    return compilation.compile_fitting(started[1], mesh)


def test_its_memory_is_known(compiled, started):
    parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(started[0]))
    batch = BATCH * 8**3 * (4 + 2)
    assert (parameters + batch) / 8 < compilation.memory_needed(compiled) < GIB


def test_memory_is_arguments_results_and_temporaries_without_what_results_take_over():
    sizes = SimpleNamespace(
        argument_size_in_bytes=1000,
        output_size_in_bytes=100,
        alias_size_in_bytes=70,
        temp_size_in_bytes=8,
    )
    assert compilation.memory_needed(SimpleNamespace(memory_analysis=lambda: sizes)) == 1038


def test_the_state_is_in_memory_once(compiled, started):
    """For its memory is the next state's."""
    sizes = compiled.memory_analysis()
    assert sizes.alias_size_in_bytes > 0
    once = sizes.argument_size_in_bytes + sizes.temp_size_in_bytes
    assert once <= compilation.memory_needed(compiled) < once + sizes.alias_size_in_bytes


def test_the_smallest_of_the_devices_is_the_limit(monkeypatch):
    devices = [SimpleNamespace(memory_stats=lambda size=size: {"bytes_limit": size}) for size in (9, 7, 8, 3)]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert compilation.memory_limit(SimpleNamespace(devices=devices[:3])) == 7


def test_steps_compile_nothing_more(compiled, started, mesh):
    """With sharded parameters and parts of a batch, too; each step takes the state that the last one left."""
    state, _ = started
    rng = np.random.default_rng(0)
    label = rng.integers(-1, 3, (BATCH, 8, 8, 8)).astype(np.int16)
    batch = {"image": rng.normal(label[..., None], 1).astype(np.float32), "label": label}
    seen = []

    def listen(event, seconds, **_):
        seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        with jax.set_mesh(mesh):
            for _ in range(3):
                state, metrics = compiled(state, shard_batch(mesh, batch))
                assert jax.device_get(metrics["finite"])
        assert not [event for event in seen if "compile" in event]
        jax.jit(lambda x: x + len(seen) + 0.123)(jnp.ones(3)).block_until_ready()
        assert [event for event in seen if "compile" in event]  # they are noticed
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert int(state.step) == 3


def test_a_validation_in_parts_holds_one_at_a_time():
    net, mesh = build_net(NET, rngs=nnx.Rngs(0)), mesh_over(jax.devices()[:1], 1)

    def needed(accumulate):
        train = TrainConfig(accumulate=accumulate)
        with jax.set_mesh(mesh):
            lowered = compilation.lower_validation_step(net, train, TASK, nnx.state(net, nnx.Param), mesh)
        return compilation.compile_fitting(lowered, mesh).memory_analysis().temp_size_in_bytes

    assert needed(BATCH) < needed(1) / 2


class FakeLowered:
    """A lowered step whose compilation ends as it is told."""

    def __init__(self, outcome):
        self.outcome = outcome

    def compile(self):
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


ADVICE = "set net.remat, raise train.accumulate, or lower data.batch_size or data.patch_size"


@pytest.mark.parametrize(("limit", "memory"), [(None, "memory"), (16 * GIB, "16.0 GiB")])
def test_what_the_compiler_cannot_fit_is_said_in_one_sentence(mesh, monkeypatch, limit, memory):
    monkeypatch.setattr(compilation, "memory_limit", lambda _: limit)
    message = "RESOURCE_EXHAUSTED: Used 20G of 15G hbm.\nSize (19.50G) exceeds the limit"
    error = jax.errors.JaxRuntimeError(message)
    with pytest.raises(compilation.StepTooLarge) as found:
        compilation.compile_fitting(FakeLowered(error), mesh)
    assert str(found.value) == (
        f"a training step must fit into the device's {memory}, got RESOURCE_EXHAUSTED: Used 20G of 15G hbm.; "
        + ADVICE
    )
    assert found.value.needed == 19.5 * GIB


def test_what_compiles_but_needs_more_than_there_is_is_refused(compiled, mesh, monkeypatch):
    needed = compilation.memory_needed(compiled)
    monkeypatch.setattr(compilation, "memory_limit", lambda _: needed)
    assert compilation.compile_fitting(FakeLowered(compiled), mesh) is compiled
    monkeypatch.setattr(compilation, "memory_limit", lambda _: needed - 1)
    with pytest.raises(ValueError, match=r"the device's 0.* MiB, got a need of 0.* MiB; set net\.remat"):
        compilation.compile_fitting(FakeLowered(compiled), mesh)


def test_where_nothing_is_known_nothing_is_refused(compiled, mesh):
    """CPUs have no limit, and other backends may not say what they need."""

    class Silent:
        def memory_analysis(self):
            return None

    assert compilation.memory_limit(mesh) is None
    silent = Silent()
    assert compilation.compile_fitting(FakeLowered(silent), mesh) is silent


def test_other_errors_stay_what_they_are(mesh):
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        compilation.compile_fitting(FakeLowered(jax.errors.JaxRuntimeError("INTERNAL: bug")), mesh)


def test_a_mesh_has_the_devices_of_a_process_side_by_side(monkeypatch):
    """In the order of the batch, of which each process reads a contiguous part."""
    monkeypatch.setattr(meshes, "Mesh", lambda grid, *_, **__: grid)
    devices = [SimpleNamespace(process_index=n // 2 % 2, id=n) for n in reversed(range(8))]
    processes = [[device.process_index for device in row] for row in mesh_over(devices, 2)]
    assert processes == [[0, 0], [0, 0], [1, 1], [1, 1]]


@pytest.fixture
def chosen_folder():
    """Sets where JAX keeps programs."""
    former = jax.config.jax_compilation_cache_dir
    yield lambda folder: jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_compilation_cache_dir", former)


def test_programs_are_kept_in_the_run_unless_the_user_has_named_a_folder(chosen_folder, tmp_path):
    chosen_folder(None)
    compilation.keep_compiled_programs(tmp_path / "run")
    kept = Path(jax.config.jax_compilation_cache_dir)
    assert kept.parent == tmp_path / "run" / "compiled"
    assert kept.name.startswith(jax.default_backend())
    assert not (tmp_path / "run").exists(), "JAX makes it with the first program"
    chosen_folder("mine")
    compilation.keep_compiled_programs(tmp_path / "other")
    assert jax.config.jax_compilation_cache_dir == "mine"


def test_several_processes_keep_no_programs(chosen_folder, tmp_path, monkeypatch):
    chosen_folder(None)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    compilation.keep_compiled_programs(tmp_path)
    assert jax.config.jax_compilation_cache_dir is None


def test_a_run_that_may_not_be_written_keeps_no_programs(chosen_folder, tmp_path, monkeypatch):
    chosen_folder(None)
    monkeypatch.setattr(os, "access", lambda *_: False)
    compilation.keep_compiled_programs(tmp_path)
    assert jax.config.jax_compilation_cache_dir is None
