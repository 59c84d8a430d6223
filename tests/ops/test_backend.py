"""What a program is traced for, and which chips are too old for a kernel."""

import contextlib
from types import SimpleNamespace

import jax
import pytest
from jax.sharding import AxisType

from jaxmamba3d.ops.backend import batch_axes, compile_for, is_old_tpu, older_gpu_than, target_backend


def test_the_target_backend_follows_the_default_device(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert target_backend() == "gpu"
    with jax.default_device(jax.devices("cpu")[0]):
        assert target_backend() == "cpu"
        with compile_for("tpu"):
            assert target_backend() == "tpu"
    with jax.default_device("cpu"):
        assert target_backend() == "cpu"


def test_the_target_backend_is_given_back():
    """Also where a trace fails, as in a notebook that goes on."""
    with contextlib.suppress(KeyError), compile_for("tpu"):
        assert target_backend() == "tpu"
        raise KeyError
    assert target_backend() == jax.default_backend()


def test_programs_are_compiled_for_known_backends():
    with (
        pytest.raises(ValueError, match="backend must be one of cpu, gpu, tpu, got 'cuda'"),
        compile_for("cuda"),
    ):
        pass


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        (["9.0"], None),
        (["8.9"], "8.9"),
        (["10.0", "12.0"], None),
        (["10.0", "8.9", "8.0"], "8.0"),
        (["8.0", "gfx942"], "gfx942"),
        ([], None),
    ],
)
def test_the_oldest_gpu_decides(monkeypatch, capabilities, expected):
    gpus = [SimpleNamespace(platform="gpu", compute_capability=c) for c in capabilities]
    monkeypatch.setattr(jax, "devices", lambda: [*gpus, SimpleNamespace(platform="cpu")])
    assert older_gpu_than(9.0) == expected
    monkeypatch.undo()
    with compile_for("gpu", gpus):
        assert older_gpu_than(9.0) == expected
    assert older_gpu_than(9.0) is None


@pytest.mark.parametrize(
    ("kind", "old"),
    [
        ("TPU v2", True),
        ("TPU v3", True),
        ("TPU v4", True),
        ("TPU v4 lite", True),
        ("TPU v5 lite", False),
        ("TPU v5p", False),
        ("TPU v6 lite", False),
        ("TPU7x", False),
        ("cpu", False),
    ],
)
def test_tpus_before_the_fifth_are_old(monkeypatch, kind, old):
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(device_kind=kind)])
    assert is_old_tpu() == old


@pytest.mark.parametrize(
    ("names", "kind", "expected"),
    [
        (("parameters", "data"), AxisType.Auto, ("data", "parameters")),
        (("data", "model"), AxisType.Auto, ("data",)),
        (("data",), AxisType.Explicit, ()),
    ],
)
def test_batches_are_shared_out_over_automatic_axes_of_their_names(names, kind, expected):
    count = len(names)
    with jax.set_mesh(jax.make_mesh((1,) * count, names, (kind,) * count, devices=jax.devices()[:1])):
        assert batch_axes() == expected
    assert batch_axes() == ()
