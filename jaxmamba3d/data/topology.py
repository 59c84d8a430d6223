"""Strides, kernels and the size of the U-Net that fits a patch: nnU-Net's rules."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

SMALLEST_FEATURE_MAP = 4
BASE_FEATURES, MAX_FEATURES = 32, 320
BLOCKS_PER_STAGE = 2


@dataclass(frozen=True)
class Topology:
    """The shape of a U-Net.

    Args:
        patch_size: padded to what the strides divide (voxels).
        strides, kernel_sizes: of each stage.
        divisor: what each axis of a patch must divide by.
    """

    patch_size: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernel_sizes: tuple[tuple[int, ...], ...]
    divisor: tuple[int, ...]

    @property
    def features(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(min(MAX_FEATURES, BASE_FEATURES * 2**stage) for stage in range(len(self.strides)))


def fit_topology(spacing: Sequence[float], patch_size: Sequence[int]) -> Topology:
    """Halves axes while their feature map stays large enough, coarse axes only once the others caught up.

    Source: nnU-Net v2, experiment_planning/experiment_planners/network_topology.py.
    """
    axes = range(len(spacing))
    now, size = list(spacing), list(patch_size)
    strides, kernels = [(1,) * len(size)], []
    kernel, halvings = [1] * len(size), [0] * len(size)
    while True:
        large = [axis for axis in axes if size[axis] >= 2 * SMALLEST_FEATURE_MAP]
        if not large:
            break
        finest = min(now[axis] for axis in large)
        halved = [axis for axis in large if now[axis] / finest < 2]
        if len(halved) == 1 and size[halved[0]] < 3 * SMALLEST_FEATURE_MAP:
            break
        # An axis is convolved once its voxels are nearly as fine as the finest, and ever after.
        kernel = [3 if kernel[axis] == 3 or now[axis] / min(now) < 2 else 1 for axis in axes]
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if axis in halved else 1 for axis in axes))
        for axis in halved:
            halvings[axis] += 1
            now[axis] *= 2
            size[axis] = math.ceil(size[axis] / 2)
    kernels.append((3,) * len(size))
    divisor = tuple(2**count for count in halvings)
    padded = tuple(math.ceil(n / d) * d for n, d in zip(patch_size, divisor, strict=True))
    return Topology(padded, tuple(strides), tuple(kernels), divisor)


def feature_map_voxels(topology: Topology, num_classes: int) -> int:
    """Numbers in all feature maps of nnU-Net's plain U-Net for one patch: its measure of memory.

    Source: `compute_conv_feature_map_size` of dynamic-network-architectures.
    """
    sizes, size = [], topology.patch_size
    for stride in topology.strides:
        size = tuple(n // s for n, s in zip(size, stride, strict=True))
        sizes.append(math.prod(size))
    maps = list(zip(topology.features, sizes, strict=True))
    encoder = sum(BLOCKS_PER_STAGE * features * voxels for features, voxels in maps)
    # Each decoder stage: one transposed and two plain convolutions; the last one also the output layer.
    decoder = sum((1 + BLOCKS_PER_STAGE) * features * voxels for features, voxels in maps[:-1])
    return encoder + decoder + num_classes * sizes[0]
