"""The paper's networks at full size, and their scans stage by stage."""

import math
from collections.abc import Collection
from typing import NamedTuple

from jaxmamba3d.checks import check_choice
from jaxmamba3d.config import NETS, NetConfig, Triple

FEATURES = (32, 64, 128, 256, 320, 320)


class PaperPlan(NamedTuple):
    """What a dataset's 3d_fullres plans fix: patch and batch, the convolutions' strides and kernels, channels
    and classes."""

    patch: Triple
    batch: int
    strides: tuple[Triple, ...]
    kernels: tuple[Triple, ...]
    in_channels: int
    num_classes: int


_CUBE, _PLANE = (3, 3, 3), (1, 3, 3)
_DOWN, _DOWN_IN_PLANE = (2, 2, 2), (1, 2, 2)
_FIRST = (1, 1, 1)

# The authors' plans (LucaLumetti/TamingMambas).
PLANS = {
    "brain_tumour": PaperPlan(
        patch=(128, 128, 128),
        batch=2,
        strides=(_FIRST, _DOWN, _DOWN, _DOWN, _DOWN, _DOWN),
        kernels=(_CUBE, _CUBE, _CUBE, _CUBE, _CUBE, _CUBE),
        in_channels=4,
        num_classes=4,
    ),
    "acdc": PaperPlan(
        patch=(14, 256, 224),
        batch=2,
        strides=(_FIRST, _DOWN_IN_PLANE, _DOWN_IN_PLANE, _DOWN, _DOWN_IN_PLANE, _DOWN_IN_PLANE),
        kernels=(_PLANE, _PLANE, _CUBE, _CUBE, _CUBE, _CUBE),
        in_channels=1,
        num_classes=4,
    ),
    "synapse": PaperPlan(
        patch=(48, 192, 192),
        batch=2,
        strides=(_FIRST, _DOWN_IN_PLANE, _DOWN, _DOWN, _DOWN, _DOWN_IN_PLANE),
        kernels=(_PLANE, _CUBE, _CUBE, _CUBE, _CUBE, _CUBE),
        in_channels=1,
        num_classes=14,
    ),
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


def paper_net(name: str, dataset: str, **options) -> NetConfig:
    """A network as the authors' plans of a dataset make it; options: further fields, such as dtype."""
    check_choice("datasets", dataset, PLANS)
    plan = PLANS[dataset]
    return NetConfig(
        name,
        plan.in_channels,
        plan.num_classes,
        features=FEATURES,
        kernel_sizes=plan.kernels,
        strides=plan.strides,
        blocks_per_stage=(2,) * len(FEATURES),
        decoder_blocks_per_stage=(2,) * (len(FEATURES) - 1),
        **options,
    )


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
        plan = PLANS[dataset]
        for net in nets:
            check_choice("nets", net, SCANNING_NETS)
            length = math.prod(plan.patch)
            for stage, (features, stride) in enumerate(zip(FEATURES, plan.strides, strict=True)):
                length //= math.prod(stride)
                states = min(features, 64 if net == "multisegmamba" else 256)
                stages.setdefault((plan.batch, length, 2 * features, states), []).append(
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
