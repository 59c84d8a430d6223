"""Reads the tensors of a PyTorch checkpoint without PyTorch, and without running what the file says."""

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxmamba3d.files import ARCHIVE_DAMAGES

_DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}

INDEX_DAMAGES = (
    ValueError,
    pickle.UnpicklingError,
    LookupError,
    TypeError,
    AttributeError,
    MemoryError,
)
"""What a damaged index makes of unpickling."""


def read_torch_checkpoint(path: str | Path) -> dict[str, np.ndarray]:
    """The state_dict in a file that `torch.save` wrote, as numpy arrays.

    Args:
        path: a state_dict alone, or a dictionary that holds one as `network_weights` (nnU-Net),
            `state_dict` or `model`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not such a checkpoint, or damaged.
    """
    content = _load(path)
    for key in ("network_weights", "state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not any(isinstance(v, np.ndarray) for v in content.values()):
        raise ValueError(f"{path} must hold a state_dict, got {type(content).__name__}")
    return {name: value for name, value in content.items() if isinstance(value, np.ndarray)}


def read_training_record(path: str | Path) -> dict[str, Any]:
    """What nnU-Net's trainer wrote beside the weights, as far as it did; no tensor is read.

    Returns:
        `init_args`: `plans`, `dataset_json`, `configuration` and `fold`; `inference_allowed_mirroring_axes`.

    Raises:
        FileNotFoundError, ValueError: see `read_torch_checkpoint`.
    """
    content = _load(path, tensors=False)
    keys = ("init_args", "inference_allowed_mirroring_axes")
    return {key: content[key] for key in keys if key in content} if isinstance(content, dict) else {}


def _load(path: str | Path, *, tensors: bool = True) -> Any:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of weights")
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("another format than that of PyTorch 1.6 and newer")
        with zipfile.ZipFile(path) as archive:
            return _Unpickler(archive, _index_of(archive), tensors).load()
    except (*ARCHIVE_DAMAGES, *INDEX_DAMAGES) as error:
        raise ValueError(f"{path} must be a whole file of torch.save, got: {error}") from error


def _index_of(archive: zipfile.ZipFile) -> str:
    index = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
    if index is None:
        raise ValueError("a zip archive without data.pkl")
    return index


class _Inert:
    """Stands for an object of a class that is of no interest; nothing of it runs."""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass

    def __call__(self, *args, **kwargs):
        return self

    def _ignore(self, *args):
        """How unpickling fills dictionaries, lists and sets."""

    __setitem__ = append = extend = add = _ignore


class _Unpickler(pickle.Unpickler):
    """Builds tensors as numpy arrays; other classes are not looked up, so no code of the file can run."""

    def __init__(self, archive: zipfile.ZipFile, index: str, tensors: bool):
        super().__init__(io.BytesIO(archive.read(index)))
        self._archive, self._folder = archive, index.removesuffix("data.pkl")
        self._tensors = tensors

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda data, *rest: data
        if module == "torch" and name in _DTYPES:
            return np.dtype(_DTYPES[name])
        return _Inert

    def persistent_load(self, key: Any) -> Any:
        kind, dtype, name, _, _ = key
        if kind != "storage" or not isinstance(dtype, np.dtype) or not self._tensors:
            return _Inert()
        return np.frombuffer(self._archive.read(f"{self._folder}data/{name}"), dtype)


def _rebuild_tensor(storage, offset, shape, strides, *rest):
    if not isinstance(storage, np.ndarray):
        return _Inert()
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if min((offset, *strides)) < 0 or (min((*shape, 1)) > 0 and last >= storage.size):
        raise ValueError(
            f"a tensor of shape {list(shape)} does not fit its storage of {storage.size} numbers"
        )
    steps = [stride * storage.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps).copy()
