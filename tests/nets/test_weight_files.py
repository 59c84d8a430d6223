"""Files of weights: what is none, or damaged, is said."""

import numpy as np
import pytest
from golden_data import GOLDEN

from jaxmamba3d.nets import read_weights


@pytest.mark.parametrize(
    ("name", "content"), [("w.pth", b"x"), ("w.npz", b"x"), ("w.safetensors", b"x" * 20)]
)
def test_damaged_weight_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} must be a"):
        read_weights(tmp_path / name)


def test_weight_files_of_another_kind(tmp_path):
    (tmp_path / "w.ckpt").write_bytes(b"x")
    with pytest.raises(
        ValueError, match=r"the ending of .*w\.ckpt must be one of \.pth, \.safetensors, \.npz"
    ):
        read_weights(tmp_path / "w.ckpt")


def test_arrays_that_changed_on_the_way_are_said(tmp_path):
    path, weight = tmp_path / "w.npz", np.arange(9.0)
    np.savez(path, weight=weight)
    path.write_bytes(path.read_bytes().replace(weight.tobytes(), weight[::-1].tobytes()))
    with pytest.raises(ValueError, match=r"w\.npz must be a whole \.npz file, got: Bad CRC"):
        read_weights(path)


@pytest.mark.parametrize("name", ["w.pth", "w.npz"])
def test_a_byte_that_changed_anywhere_is_harmless_or_said(tmp_path, name):
    path = tmp_path / name
    if name == "w.npz":
        np.savez_compressed(path, weight=np.arange(9.0), bias=np.ones(3, np.float32))
        content = path.read_bytes()
    else:
        content = (GOLDEN / "torch_checkpoint.pth").read_bytes()
        path.write_bytes(content)
    expected, messages = read_weights(path), []
    for place in np.random.default_rng(0).choice(len(content), 300, replace=False):
        changed = bytearray(content)
        changed[place] ^= 0x55
        path.write_bytes(changed)
        try:
            found = read_weights(path)
        except ValueError as error:
            messages.append(str(error))
        else:
            assert all(np.array_equal(expected.get(key), value) for key, value in found.items())
    assert len(messages) > 50
    assert all(str(path) in message for message in messages)


@pytest.mark.parametrize("name", ["w.pth", "w.npz", "w.safetensors"])
def test_weight_files_that_are_not_there_are_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=rf"{name}: no such file of weights"):
        read_weights(tmp_path / name)
