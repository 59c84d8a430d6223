"""nnU-Net's planner: from a dataset's fingerprint to its plans."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxmamba3d.checks import check_positive
from jaxmamba3d.data.cases import Dataset
from jaxmamba3d.data.dataset import read_dataset
from jaxmamba3d.data.fingerprint import Fingerprint, compute_fingerprint
from jaxmamba3d.data.inspection import check_dataset
from jaxmamba3d.data.plans import Configuration, Plans
from jaxmamba3d.data.resampling import resampled_shape
from jaxmamba3d.data.topology import BLOCKS_PER_STAGE, Topology, feature_map_voxels, fit_topology

CONFIGURATIONS = ("3d_fullres", "3d_lowres")
"""That are planned, the latter where a dataset needs it."""
ANISOTROPY = 3
LARGEST_PATCH_VOXELS = 256**3
# What nnU-Net measured to fit: numbers in the feature maps of a batch of 2 on 8 GB.
REFERENCE_FEATURE_MAP_VOXELS, REFERENCE_BATCH, REFERENCE_GB = 560_000_000, 2, 8.0
SMALLEST_BATCH = 2
LARGEST_SHARE_OF_DATASET = 0.05
LOWRES_BELOW_SHARE = 0.25
USE_MASK_BELOW = 0.75

NORMALIZATIONS = {
    "ct": "CTNormalization",
    "nonorm": "NoNormalization",
    "zscore": "ZScoreNormalization",
    "rescale_to_0_1": "RescaleTo01Normalization",
    "rgb_to_0_1": "RGBTo01Normalization",
}


def normalization_of(channel_name: str) -> str:
    """The scheme by which nnU-Net normalises a channel of this name."""
    return NORMALIZATIONS.get(channel_name.casefold(), "ZScoreNormalization")


def plan_dataset(
    dataset: str | Path | Dataset,
    *,
    memory_gb: float = REFERENCE_GB,
    fingerprint: Fingerprint | None = None,
    processes: int | None = None,
) -> Plans:
    """nnU-Net's plans of a dataset: 3d_fullres, and 3d_lowres where a patch covers little of a case.

    Single slices, for which nnU-Net plans in 2D alone, get patches of one slice.

    Args:
        dataset: a dataset folder, or what `read_dataset` made of it.
        memory_gb: device memory that patch and batch size aim at.
        fingerprint: of the dataset; None: computed.
        processes: worker processes for that; None: one for each core.

    Raises:
        FileNotFoundError: the dataset folder is missing or empty.
        ValueError: dataset.json is wrong, or, where `dataset` is a folder, it has bad cases (all are named).

    Source: nnU-Net v2, experiment_planning/experiment_planners/default_experiment_planner.py.
    """
    check_positive("memory_gb", memory_gb)
    if not isinstance(dataset, Dataset):
        dataset = read_dataset(dataset)
        if fingerprint is not None:
            check_dataset(dataset, processes=processes)
    if fingerprint is None:
        fingerprint = compute_fingerprint(dataset, processes=processes)
    spacings, shapes = np.array(fingerprint.spacings), np.array(fingerprint.shapes_after_crop)
    spacing = _target_spacing(spacings, shapes)
    coarsest = int(np.argmax(spacing))
    forward = (coarsest, *(axis for axis in range(3) if axis != coarsest))
    order = list(forward)
    resampled = [resampled_shape(shape, old, spacing) for shape, old in zip(shapes, spacings, strict=True)]
    median_size = np.median(resampled, 0)[order]
    planner = _Planner(dataset, fingerprint, memory_gb)
    return Plans(
        dataset_name=dataset.name,
        transpose_forward=forward,
        transpose_backward=tuple(int(axis) for axis in np.argsort(forward)),
        original_median_spacing=tuple(float(s) for s in np.median(spacings, 0)[order]),
        original_median_shape=tuple(round(n) for n in np.median(shapes, 0)[order]),
        configurations=planner.configurations(spacing[order], median_size),
        intensity_properties=fingerprint.foreground_intensity_properties_per_channel,
    )


def _target_spacing(spacings: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """The median, but finer along an axis that is much coarser than the others and short as well."""
    target, size = np.percentile(spacings, 50, 0), np.percentile(shapes, 50, 0)
    worst = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != worst]
    coarse = target[worst] > ANISOTROPY * max(target[others])
    short = size[worst] * ANISOTROPY < min(size[others])
    if coarse and short:
        finer = np.percentile(spacings[:, worst], 10)
        largest_other = max(target[others])
        target[worst] = max(largest_other, finer) + 1e-5 if finer < largest_other else finer
    return target


class _Planner:
    """What all configurations of a dataset share."""

    def __init__(self, dataset: Dataset, fingerprint: Fingerprint, memory_gb: float):
        schemes = [normalization_of(name) for name in dataset.channel_names]
        masked = fingerprint.median_relative_size_after_cropping < USE_MASK_BELOW
        self.normalization_schemes = tuple(schemes)
        self.use_mask_for_norm = tuple(masked and scheme == "ZScoreNormalization" for scheme in schemes)
        # As nnU-Net counts: background, regions and ignore label too.
        self.num_classes = len(dataset.labels.entries)
        self.budget = REFERENCE_FEATURE_MAP_VOXELS * memory_gb / REFERENCE_GB
        self.cases = len(dataset.cases)

    def configurations(self, spacing: np.ndarray, median_size: np.ndarray) -> dict[str, Configuration]:
        """3d_fullres, and 3d_lowres where nnU-Net would add it."""
        lowres = self._lowres(spacing, median_size, self._patch(spacing, median_size)[0].patch_size)
        found = {} if lowres is None else {"3d_lowres": self._configuration(*lowres, batch_dice=False)}
        voxels = float(np.prod(median_size))
        full = self._configuration(spacing, median_size, voxels, batch_dice=lowres is not None)
        return found | {"3d_fullres": full}

    def _patch(self, spacing: Sequence[float], median_size: Sequence[float]) -> tuple[Topology, int]:
        """The largest patch that fits, of the median case's proportions, and its feature map voxels."""
        inverse = 1 / np.array(spacing)
        scale = (LARGEST_PATCH_VOXELS / np.prod(inverse)) ** (1 / 3)
        # A median halfway between two sizes stays so: padding rounds it up.
        patch = [min(round(n), float(m)) for n, m in zip(inverse * scale, median_size, strict=True)]
        topology = fit_topology(spacing, patch)
        while (voxels := feature_map_voxels(topology, self.num_classes)) > self.budget:
            patch = list(topology.patch_size)
            axis = int(np.argsort([n / m for n, m in zip(patch, median_size, strict=True)])[-1])
            # The step is what the smaller patch must divide by.
            smaller = list(patch)
            smaller[axis] -= topology.divisor[axis]
            patch[axis] -= fit_topology(spacing, smaller).divisor[axis]
            topology = fit_topology(spacing, patch)
        return topology, voxels

    def _configuration(
        self, spacing: Sequence[float], median_size: Sequence[float], case_voxels: float, *, batch_dice: bool
    ) -> Configuration:
        topology, voxels = self._patch(spacing, median_size)
        fits = round(self.budget / voxels * REFERENCE_BATCH)
        dataset_voxels = case_voxels * self.cases
        share = round(dataset_voxels * LARGEST_SHARE_OF_DATASET / math.prod(topology.patch_size))
        stages = len(topology.strides)
        return Configuration(
            spacing=tuple(float(s) for s in spacing),
            patch_size=topology.patch_size,
            batch_size=max(min(fits, share), SMALLEST_BATCH),
            median_image_size=tuple(float(n) for n in median_size),
            normalization_schemes=self.normalization_schemes,
            use_mask_for_norm=self.use_mask_for_norm,
            batch_dice=batch_dice,
            features=topology.features,
            kernel_sizes=topology.kernel_sizes,
            strides=topology.strides,
            blocks_per_stage=(BLOCKS_PER_STAGE,) * stages,
            decoder_blocks_per_stage=(BLOCKS_PER_STAGE,) * (stages - 1),
        )

    def _lowres(self, spacing, median_size, patch_size):
        """Spacing, median size and voxels at which a patch covers a quarter of a case; None if it does
        already, or if that is hardly coarser."""
        low = np.array(spacing, float)
        voxels, covered = np.prod(median_size), math.prod(patch_size)
        while covered / voxels < LOWRES_BELOW_SHARE:
            behind = max(low) / low > 2
            low = low * np.where(behind, 1.03, 1) if behind.any() else low * 1.03
            voxels = np.prod(spacing / low * median_size)
            size = [round(n) for n in spacing / low * median_size]
            covered = math.prod(self._patch(low, size)[0].patch_size)
        if np.prod(median_size) / voxels < 2:
            return None
        return low, [round(n) for n in spacing / low * median_size], float(voxels)
