"""Weights of the authors' PyTorch networks: their state_dict's names and layouts, and ours."""

import re
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxmamba3d.checks import check_that
from jaxmamba3d.wording import first_few

# Path of a parameter in our modules -> the authors' name; tried in this order, each on the whole path.
_RENAMED = (
    (r"^stem\.", "encoder.stem.convs.0."),
    (r"^(encoder|decoder)\.(\d+)\.layers\.", r"\1.stages.\2.blocks."),
    (r"^mixers\.", "encoder.mamba_layers."),
    (r"^upsamplers\.", "decoder.transpconvs."),
    (r"^heads\.", "decoder.seg_layers."),
    (r"(^|\.)blocks\.(\d+)\.(?=forward|backward|norm)", r"\1mambas.\2."),
    (r"(^|\.)block\.", r"\1mamba."),
    (r"(^|\.)forward\.", r"\1fwd_mamba."),
    (r"(^|\.)backward\.", r"\1bwd_mamba."),
    (r"(^|\.)shortcut\.", r"\1skip.0."),
    (r"conv_(kernel|bias)$", r"conv1d.\1"),
    (r"dt_bias$", "dt_proj.bias"),
    (r"(kernel|scale)$", "weight"),
)
# The same tensor under a second name: PyTorch lists shared modules once for every attribute.
_ALIASES = (
    (r"^((module|_orig_mod)\.)+", ""),  # wrappers of distributed or compiled networks
    (r"^decoder\.encoder\.", "encoder."),
    (r"\.all_modules\.0\.", ".conv."),
    (r"\.all_modules\.1\.", ".norm."),
)


def load_official_weights(net: nnx.Module, weights: Mapping[str, np.ndarray]) -> None:
    """Replaces all parameters of a net, or of one of our layers, by those of the authors' state_dict.

    Args:
        net: changed in place; may be an `abstract_net`, which saves drawing random weights.
        weights: the state_dict as numpy arrays; tensors may come twice under PyTorch's duplicate names.

    Raises:
        ValueError: tensors are missing, surplus, misshapen, not finite or contradict their duplicates; of the
            first kind found the count and some names are given, and the net is unchanged.
    """
    given: dict[str, np.ndarray] = {}
    for name, value in weights.items():
        canonical = _substitute(name, _ALIASES)
        value = np.asarray(value)
        if canonical in given:
            check_that(
                np.array_equal(given[canonical], value, equal_nan=True),
                name,
                f"equal to its duplicate {canonical}",
                "other values",
            )
        given[canonical] = value

    params = dict(_named_params(net))
    missing, surplus = sorted(params.keys() - given.keys()), sorted(given.keys() - params.keys())
    found = f"{_listed(missing, 'missing')} and {_listed(surplus, 'surplus')} tensors"
    check_that(not missing and not surplus, "weights", f"the {len(params)} tensors of this net", found)
    wanted = {
        name: _to_official(name, np.broadcast_to(0.0, param.shape)).shape for name, param in params.items()
    }
    misshapen = [
        f"{name} {list(given[name].shape)} instead of {list(shape)}"
        for name, shape in wanted.items()
        if given[name].shape != shape
    ]
    check_that(not misshapen, "weights", "of this net's shapes", "; ".join(misshapen))
    broken = [name for name, value in given.items() if not np.isfinite(value.astype(np.float32)).all()]
    check_that(not broken, "weights", "finite", f"{_listed(broken, 'not finite')} tensors")
    for name, param in params.items():
        param.set_value(jnp.asarray(_from_official(name, given[name]), param.dtype))


def to_official_weights(net: nnx.Module) -> dict[str, np.ndarray]:
    """The parameters of a net (or gradients in the shape of one) under the authors' names and layouts."""
    return {name: np.asarray(_to_official(name, param[...])) for name, param in _named_params(net)}


def _listed(names: list[str], kind: str) -> str:
    """The count and the first few names."""
    return f"{len(names)} {kind} ({first_few(names)})" if names else f"no {kind}"


def _substitute(name, rules):
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _named_params(net):
    """Pairs of the authors' name and our `nnx.Param`."""
    strided = {path for path, node in nnx.iter_graph(net) if getattr(node, "strides", (1, 1, 1)) != (1, 1, 1)}
    for path, param in nnx.iter_graph(net):
        if isinstance(param, nnx.Param):
            name = _substitute(".".join(map(str, path)), _RENAMED)
            if "shortcut" in path and path[: path.index("shortcut")] in strided:
                name = name.replace("skip.0.", "skip.1.")  # behind the average pool, which has no weights
            yield name, param


def _official_axes(name, axes):
    """Our axes, channels last, in PyTorch's order."""
    if axes == 5:
        return (3, 4, 0, 1, 2) if "transpconvs" in name else (4, 3, 0, 1, 2)
    return (1, 0) if axes == 2 and name.endswith("weight") else tuple(range(axes))


def _to_official(name, value):
    value = np.transpose(np.asarray(value), _official_axes(name, value.ndim))
    return value[:, None] if name.endswith("conv1d.weight") else value  # [D, W] -> [D, 1, W]


def _from_official(name, value):
    value = value[:, 0] if name.endswith("conv1d.weight") else value
    return np.transpose(value, np.argsort(_official_axes(name, value.ndim)))
