"""The .pth beside the .npz was written by torch 2.13 from the same tensors, views and dtypes included."""

import pickle
import zipfile
from collections import defaultdict, deque
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from golden_data import GOLDEN, golden_arrays

from jaxmamba3d.nets import (
    load_official_weights,
    read_torch_checkpoint,
    read_training_record,
    to_official_weights,
)
from jaxmamba3d.nn import ResidualBlock


def test_equals_what_torch_saved():
    expected = golden_arrays("torch_checkpoint.npz")
    found = read_torch_checkpoint(GOLDEN / "torch_checkpoint.pth")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name].astype(np.float32), value, err_msg=name)


def test_no_tensor_is_read_for_what_a_trainer_wrote(tmp_path):
    """Objects of any class may lie beside it."""
    assert read_training_record(GOLDEN / "torch_checkpoint.pth") == {}
    path = tmp_path / "checkpoint.pth"
    beside = {"logger": defaultdict(list, a=[1]), "queue": deque([1, 2]), "kinds": {Path("x")}}
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({"init_args": {"fold": 2}, **beside}))
    assert read_training_record(path) == {"init_args": {"fold": 2}}


def test_other_files_are_refused(tmp_path):
    text = tmp_path / "weights.pth"
    text.write_text("no checkpoint")
    with pytest.raises(ValueError, match=r"weights\.pth must be a file of torch\.save"):
        read_torch_checkpoint(text)
    archive = tmp_path / "other.pth"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("readme", "no checkpoint")
    with pytest.raises(ValueError, match=r"other\.pth must be .* without data\.pkl"):
        read_torch_checkpoint(archive)
    with pytest.raises(FileNotFoundError, match=r"no\.pth: no such file"):
        read_torch_checkpoint(tmp_path / "no.pth")


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_damaged_index_is_said(tmp_path, share):
    with zipfile.ZipFile(GOLDEN / "torch_checkpoint.pth") as whole:
        (name,) = (name for name in whole.namelist() if name.endswith("data.pkl"))
        content = whole.read(name)
    path = tmp_path / "cut.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(name, content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"cut\.pth must be a whole file of torch\.save, got: "):
        read_torch_checkpoint(path)


def test_wrappers_in_wrappers_are_taken_off(tmp_path):
    layer = ResidualBlock(2, 2, (3, 3, 3), (1, 1, 1), rngs=nnx.Rngs(0))
    wrapped = {f"module._orig_mod.{name}": value for name, value in to_official_weights(layer).items()}
    load_official_weights(layer, wrapped)
    assert to_official_weights(layer).keys() == {name.split(".", 2)[2] for name in wrapped}


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    path = tmp_path / "attack.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({"state_dict": Attack()}))
    with pytest.raises(ValueError, match="must hold a state_dict"):
        read_torch_checkpoint(path)
    assert not (tmp_path / "ran").exists()
