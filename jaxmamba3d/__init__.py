"""Mamba networks for 3D medical image segmentation in JAX and Flax.

Shapes in this package: `B` batch; `X Y Z` the three array axes in stored order, slice axis first; `C`
channels; `L` length of a sequence; `D` inner channels; `N` state size; `K` classes, background included.
Arrays are channels last: volumes [B, X, Y, Z, C], sequences [B, L, C].
"""

import importlib

_HOMES = {
    "selective_scan": "jaxmamba3d.ops.selective_scan",
    "Segmenter": "jaxmamba3d.experiment",
    "NetConfig": "jaxmamba3d.config",
    "build_net": "jaxmamba3d.nets",
    "load_official_weights": "jaxmamba3d.nets",
}
__all__ = ["NetConfig", "Segmenter", "build_net", "load_official_weights", "selective_scan"]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str):
    # On first use, so that worker processes that only read files never import jax.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
