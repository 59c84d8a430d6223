"""The .pth beside the .npz was written by torch 2.13 from the same tensors, views and dtypes included."""

import pickle
import zipfile
from collections import defaultdict, deque
from pathlib import Path

import ml_dtypes
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

NUMBERS = np.arange(6, dtype=np.float32)


def tensor(shape=(6,), strides=(1,), offset=0, storage="FloatStorage", kind="storage"):
    """The pickle of a tensor as torch writes it, of the numbers in data/0."""
    shape, strides = ("(" + "".join(f"I{n}\n" for n in numbers) + "t" for numbers in (shape, strides))
    place = f"(S'{kind}'\nctorch\n{storage}\nS'0'\nS'cpu'\nI6\ntQ"
    return f"ctorch._utils\n_rebuild_tensor_v2\n({place}I{offset}\n{shape}{strides}tR"


def dictionary(**pickles):
    return "(d" + "".join(f"S'{key}'\n{value}s" for key, value in pickles.items())


def saved(folder, content, numbers=NUMBERS):
    """A checkpoint of this pickle; without data/0 where there are no numbers."""
    path = folder / "checkpoint.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", f"{content}.")
        if numbers is not None:
            file.writestr("archive/data/0", numbers.tobytes())
    return path


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
    told = {"init_args": {"fold": 2}, "inference_allowed_mirroring_axes": (0, 1)}
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(told | beside))
    assert read_training_record(path) == told
    made_by_what_was_made = "cfunctools\npartial\n)R)R"
    content = dictionary(network_weights=tensor(), hook=made_by_what_was_made, init_args="I2\n")
    assert read_training_record(saved(tmp_path, content, numbers=None)) == {"init_args": 2}
    assert read_training_record(saved(tmp_path, "I1\n")) == {}


@pytest.mark.parametrize(
    ("storage", "dtype"),
    [
        ("DoubleStorage", np.float64),
        ("FloatStorage", np.float32),
        ("HalfStorage", np.float16),
        ("BFloat16Storage", ml_dtypes.bfloat16),
        ("LongStorage", np.int64),
        ("IntStorage", np.int32),
        ("ShortStorage", np.int16),
        ("CharStorage", np.int8),
        ("ByteStorage", np.uint8),
        ("BoolStorage", np.bool_),
    ],
)
def test_a_storage_is_of_the_dtype_that_its_class_says(tmp_path, storage, dtype):
    numbers = np.array([0, 1, 1, 0, 1, 1], dtype)
    path = saved(tmp_path, dictionary(weight=tensor(storage=storage)), numbers)
    found = read_torch_checkpoint(path)["weight"]
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, numbers)


@pytest.mark.parametrize(
    ("shape", "strides", "offset", "expected"),
    [
        ((2, 2), (3, 1), 1, [[1, 2], [4, 5]]),
        ((3, 2), (1, 3), 0, [[0, 3], [1, 4], [2, 5]]),
        ((2, 2), (0, 1), 4, [[4, 5], [4, 5]]),
        ((), (), 5, 5),
        ((3, 0), (1, 1), 6, np.zeros((3, 0))),
    ],
)
def test_views_of_a_storage_become_arrays_of_their_own(tmp_path, shape, strides, offset, expected):
    path = saved(tmp_path, dictionary(weight=tensor(shape, strides, offset)))
    found = read_torch_checkpoint(path)["weight"]
    np.testing.assert_array_equal(found, expected)
    assert found.flags.writeable


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        ((7,), (1,), 0),
        ((2,), (1,), 5),
        ((2, 2), (3, 1), 2),
        ((), (), 6),
        ((2,), (-1,), 0),
        ((3,), (1,), -1),
        ((2, 2), (-4, 5), 0),
    ],
)
def test_tensors_beyond_their_storage_are_refused(tmp_path, shape, strides, offset):
    path = saved(tmp_path, dictionary(weight=tensor(shape, strides, offset)))
    with pytest.raises(
        ValueError, match=r"pth must be a whole .* tensor of shape .* its storage of 6 numbers"
    ):
        read_torch_checkpoint(path)


@pytest.mark.parametrize("key", ["network_weights", "state_dict", "model"])
def test_the_tensors_are_found_in_what_holds_them(tmp_path, key):
    path = saved(tmp_path, dictionary(epoch="I3\n", **{key: dictionary(weight=tensor(), steps="I5\n")}))
    assert read_torch_checkpoint(path).keys() == {"weight"}
    path = saved(tmp_path, dictionary(**{key: tensor(), "bias": tensor()}))
    assert read_torch_checkpoint(path).keys() == {key, "bias"}


@pytest.mark.parametrize("other", [{"storage": "ComplexFloatStorage"}, {"kind": "module"}])
def test_what_is_no_tensor_of_numbers_is_left_out(tmp_path, other):
    path = saved(tmp_path, dictionary(weight=tensor(), other=tensor(**other)))
    assert read_torch_checkpoint(path).keys() == {"weight"}


def test_other_files_are_refused(tmp_path):
    text = tmp_path / "weights.pth"
    text.write_text("no checkpoint")
    with pytest.raises(ValueError, match=r"weights\.pth must be a whole .*, got: another format"):
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


@pytest.mark.parametrize(
    ("content", "numbers"),
    [
        ("t", None),
        ("I1\n)R", None),
        ("I1\n}b", None),
        (dictionary(weight=tensor()), None),
        (dictionary(weight=tensor()), np.zeros(5, np.int8)),
    ],
)
def test_damage_of_any_kind_is_said(tmp_path, content, numbers):
    path = saved(tmp_path, content, numbers)
    with pytest.raises(ValueError, match=r"checkpoint\.pth must be a whole file of torch\.save, got"):
        read_torch_checkpoint(path)


def test_numbers_that_changed_on_the_way_are_said(tmp_path):
    path = saved(tmp_path, dictionary(weight=tensor()))
    path.write_bytes(path.read_bytes().replace(NUMBERS.tobytes(), NUMBERS[::-1].tobytes()))
    with pytest.raises(ValueError, match=r"checkpoint\.pth must be a whole file .* Bad CRC"):
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
