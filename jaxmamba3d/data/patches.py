"""Where patches are cut: nnU-Net's foreground sampling, as pure functions of a random generator."""

import contextlib
import math
import mmap
from collections.abc import Sequence

import numpy as np
from numpy.lib.array_utils import byte_bounds

TABLE_SEED = 1234
TABLE_VOXELS, TABLE_SHARE = 10_000, 0.01


def foreground_table(label: np.ndarray, classes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """Voxels of each class or region that is present, from which the centres of forced patches are drawn.

    Of the n voxels of a class max(min(10000, n), ceil(0.01 n)) are kept, drawn without replacement from one
    `RandomState(1234)` that goes over the classes in order.

    Args:
        label: [X, Y, Z], any integer dtype.
        classes: the label values of each class or region, in order.

    Returns:
        [n, 3] int32 for each class that is present, voxels in the order drawn.

    Source: nnU-Net, preprocessing/preprocessors/default_preprocessor.py, `_sample_foreground_locations`.
    """
    random = np.random.RandomState(TABLE_SEED)
    table = []
    for values in classes:
        voxels = np.concatenate([np.flatnonzero(label == value) for value in values])
        if voxels.size:
            count = max(min(TABLE_VOXELS, voxels.size), math.ceil(TABLE_SHARE * voxels.size))
            drawn = voxels[random.choice(voxels.size, count, replace=False)]
            table.append(np.stack(np.unravel_index(drawn, label.shape), axis=1).astype(np.int32))
    return table


def is_forced(position: int, batch_size: int, foreground_fraction: float) -> bool:
    """Whether the sample at this position of a batch must hold foreground: the last ones of each batch do."""
    return position >= round(batch_size * (1 - foreground_fraction))


def corner_bounds(
    shape: Sequence[int], patch_size: Sequence[int], final_patch_size: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Lowest and highest lower corner of a patch, by axis, both included.

    A patch may reach over the border by half of what augmentation cuts off again (patch minus final patch),
    or by half of what the volume is smaller than the patch.

    Args:
        shape: of the volume, voxels.
        patch_size: of the patch that is cut.
        final_patch_size: of what the net will see of it.
    """
    lowest, highest = [], []
    for size, patch, final in zip(shape, patch_size, final_patch_size, strict=True):
        padding = max(patch - final, patch - size)
        lowest.append(-padding // 2)
        highest.append(size + padding // 2 + padding % 2 - patch)
    return tuple(lowest), tuple(highest)


def draw_corner(
    generator: np.random.Generator,
    shape: Sequence[int],
    patch_size: Sequence[int],
    final_patch_size: Sequence[int],
    centres: Sequence[np.ndarray],
) -> tuple[int, ...]:
    """The lower corner of a random patch.

    Args:
        generator: source of randomness.
        shape, patch_size, final_patch_size: see `corner_bounds`.
        centres: voxels [n, 3] of each class present; if there are any, a class is drawn uniformly, then one
            of its voxels, and the patch is centred there, or as near as the lowest corner allows. Empty:
            the corner is uniform within the bounds.

    Source: nnU-Net, training/dataloading/data_loader.py, `get_bbox`.
    """
    lowest, highest = corner_bounds(shape, patch_size, final_patch_size)
    if not centres:
        return tuple(generator.integers(lowest, highest, endpoint=True).tolist())
    voxels = centres[generator.integers(len(centres))]
    voxel = voxels[generator.integers(len(voxels))].tolist()
    return tuple(
        max(low, centre - patch // 2) for low, centre, patch in zip(lowest, voxel, patch_size, strict=True)
    )


def cut_into(patch: np.ndarray, volume: np.ndarray, corner: Sequence[int], fill: float) -> None:
    """Copies a patch from a lower corner of a volume, with `fill` where it reaches outside.

    Args:
        patch: [*patch_size, ...], all of which is written.
        volume: [X, Y, Z, ...], may be a memory map: only the pages that hold the patch are read.
        corner: lower corner, voxels; may be negative.
        fill: value outside.
    """
    source, target = [], []
    for low, length, size in zip(corner, patch.shape, volume.shape[:3], strict=False):
        start = max(low, 0)
        stop = max(min(low + length, size), start)
        # What lies outside along this axis, of the part that is inside along the ones before.
        patch[(*target, slice(0, start - low))] = fill
        patch[(*target, slice(stop - low, None))] = fill
        source.append(slice(start, stop))
        target.append(slice(start - low, stop - low))
    part = volume[tuple(source)]
    if isinstance(volume.base, mmap.mmap) and part.size:
        _read_pages(volume, part)
    patch[tuple(target)] = part


def _read_pages(volume: np.memmap, part: np.memmap) -> None:
    """Asks the system to read a part of a memory map, all of it at once.

    Else it reads page by page as they are touched, each with its neighbours, which may be several times as
    much.
    """
    if not hasattr(mmap, "MADV_WILLNEED"):
        return
    begin = byte_bounds(volume)[0] - volume.offset % mmap.ALLOCATIONGRANULARITY
    first, stop = byte_bounds(part[0])
    apart = part.strides[0] - (stop - first) > mmap.PAGESIZE
    with contextlib.suppress(OSError):  # it is advice; reading itself will tell what is wrong
        for piece in part.view(np.ndarray) if apart else [part]:
            first, stop = (address - begin for address in byte_bounds(piece))
            first -= first % mmap.PAGESIZE
            volume.base.madvise(mmap.MADV_WILLNEED, first, stop - first)
