"""The scans of the paper's networks, stage by stage."""

import math
from collections.abc import Collection
from typing import NamedTuple

from jaxmamba3d.checks import check_choice
from jaxmamba3d.config import NETS

FEATURES = (32, 64, 128, 256, 320, 320)
# Patch, batch and strides of the authors' 3d_fullres plans (LucaLumetti/TamingMambas).
PLANS = {
    "brain_tumour": ((128, 128, 128), 2, ((1, 1, 1), *[(2, 2, 2)] * 5)),
    "acdc": ((14, 256, 224), 2, ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2))),
    "synapse": ((48, 192, 192), 2, ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2))),
}
SCANNING_NETS = tuple(net for net in NETS if net != "resunet")


class ScanShape(NamedTuple):
    """A scan over [B, L, D] with N states, and the networks' stages that run it."""

    batch: int
    length: int
    channels: int
    states: int
    where: str

    @property
    def size(self) -> tuple[int, int, int, int]:
        """B, L, D, N."""
        return self[:4]


def paper_shapes(datasets: Collection[str] = tuple(PLANS), nets: Collection[str] = SCANNING_NETS):
    """The different scans of the networks' stages, longest first.

    Args:
        datasets: out of brain_tumour, acdc, synapse.
        nets: out of the paper's four.

    Raises:
        ValueError: an unknown name.
    """
    stages: dict[tuple[int, ...], list[str]] = {}
    for dataset in datasets:
        check_choice("datasets", dataset, PLANS)
        patch, batch, strides = PLANS[dataset]
        for net in nets:
            check_choice("nets", net, SCANNING_NETS)
            length = math.prod(patch)
            for stage, (features, stride) in enumerate(zip(FEATURES, strides, strict=True)):
                length //= math.prod(stride)
                states = min(features, 64 if net == "multisegmamba" else 256)
                stages.setdefault((batch, length, 2 * features, states), []).append(
                    f"{dataset} {net} {stage}"
                )
    shapes = [ScanShape(*size, _summary(where)) for size, where in stages.items()]
    return sorted(shapes, key=lambda shape: (-shape.length, -shape.states))


def _summary(where: list[str]) -> str:
    """`dataset net,net stage` for each dataset and stage."""
    by_stage: dict[tuple[str, str], list[str]] = {}
    for entry in where:
        dataset, net, stage = entry.split()
        by_stage.setdefault((dataset, stage), []).append(net)
    return "; ".join(
        f"{dataset} stage {stage}" + ("" if len(nets) == len(SCANNING_NETS) else f" of {', '.join(nets)}")
        for (dataset, stage), nets in by_stage.items()
    )
