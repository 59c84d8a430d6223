"""Training batches from preprocessed cases, read ahead by threads (Grain)."""

import dataclasses
import math
import operator
from collections.abc import Sequence
from pathlib import Path

import grain
import numpy as np

from jaxmamba3d.checks import check_count, check_sizes, check_that
from jaxmamba3d.config import Triple
from jaxmamba3d.data.case_files import IMAGE, centres_of, open_case
from jaxmamba3d.data.patches import cut_into, draw_corner, is_forced
from jaxmamba3d.labels import OUTSIDE

# Samples until the stream ends: more than any training draws, and within int64 after any arithmetic on it.
ENDLESS = 2**48

# JAX takes arrays that begin at a multiple of these bytes as they are on CPUs, and copies others.
ALIGNMENT = 64


@dataclasses.dataclass(frozen=True)
class PatchSource:
    """Batches of the endless stream of patches, sample i of which is a pure function of (seed, i).

    Args:
        folders: of the preprocessed cases.
        patch_size: voxels that are cut.
        final_patch_size: voxels that the net will see of them.
        batch_size: of the global batch; its last samples are forced to hold foreground.
        foreground_fraction: share of forced samples.
        seed: of the stream.
    """

    folders: tuple[Path, ...]
    patch_size: Triple
    final_patch_size: Triple
    batch_size: int
    foreground_fraction: float
    seed: int

    def __call__(self, numbers: Sequence[int]) -> dict[str, np.ndarray]:
        """The samples of these numbers: {"image": [B, X, Y, Z, C] float32, "label": [B, X, Y, Z] int16,
        "case": [B] the numbers of their cases}; outside the volume they are 0 and -1."""
        example = open_case(self.folders[0])
        shape = (len(numbers), *self.patch_size)
        image = _aligned((*shape, example.image.shape[-1]), example.image.dtype)
        label = _aligned(shape, example.label.dtype)
        cases = [self._cut(*sample) for sample in zip(numbers, image, label, strict=True)]
        return {"image": image, "label": label, "case": np.array(cases)}

    def _cut(self, i: int, image: np.ndarray, label: np.ndarray) -> int:
        """Writes sample i into [X, Y, Z, C] and [X, Y, Z], and returns the number of its case."""
        generator = np.random.default_rng((self.seed, i))
        number = generator.integers(len(self.folders))
        folder = self.folders[number]
        case = open_case(folder)
        forced = is_forced(i % self.batch_size, self.batch_size, self.foreground_fraction)
        structures, annotated = centres_of(folder)
        # Where only some voxels are annotated, every patch is centred on one that is.
        centres = (forced and structures) or annotated
        corner = draw_corner(generator, case.label.shape, self.patch_size, self.final_patch_size, centres)
        cut_into(image, case.image, corner, 0)
        cut_into(label, case.label, corner, OUTSIDE)
        return number


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array of any content, in C order."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def training_batches(
    cases_folder: str | Path,
    case_names: Sequence[str],
    *,
    patch_size: Triple,
    batch_size: int,
    final_patch_size: Triple | None = None,
    foreground_fraction: float = 0.33,
    seed: int = 0,
    threads: int = 2,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """An endless iterator of random patches; cases are drawn with replacement.

    Sample i of the stream depends on (seed, i) alone. A process yields its contiguous part of every global
    batch: the parts of all processes, in order, are the batch that one process would yield. `get_state` and
    `set_state` resume exactly.

    Args:
        cases_folder: output of `preprocess_dataset`.
        case_names: cases to draw from.
        patch_size: voxels (X, Y, Z) that are cut.
        batch_size: samples of the global batch, of all processes together.
        final_patch_size: what the net will see of the patch after augmentation (rotations need more than
            they keep); None: all of it. See `patches.corner_bounds`.
        foreground_fraction: share of every batch, its last samples, that is centred on foreground.
        seed: of the stream; training and validation take different ones.
        threads: threads that read ahead.
        process_index, process_count: this process among those that train together.

    Returns:
        iterator of {"image": [B, X, Y, Z, C] float32, "label": [B, X, Y, Z] int16, "case": [B] int64, the
        position in `case_names`}, B = batch_size / process_count. Outside the volume the image is 0; label -1
        is outside the body or the volume.

    Raises:
        FileNotFoundError: a case is not in the folder.
        ValueError: no cases, the batch does not divide among the processes, or an argument makes no sense.
    """
    check_that(len(case_names) > 0, "case_names", "at least one case", "none")
    check_count("batch_size", batch_size)
    divides = batch_size % process_count == 0
    check_that(divides, "batch_size", f"a multiple of the {process_count} processes", batch_size)
    check_that(0 <= process_index < process_count, "process_index", f"below {process_count}", process_index)
    check_that(0 <= foreground_fraction <= 1, "foreground_fraction", "from 0 to 1", foreground_fraction)
    check_that(seed >= 0, "seed", "0 or greater", seed)
    patch_size, final_patch_size = tuple(patch_size), tuple(final_patch_size or patch_size)
    check_sizes("patch_size", patch_size)
    inside = len(final_patch_size) == 3 and all(map(operator.le, final_patch_size, patch_size))
    check_that(inside, "final_patch_size", f"within the patch of {patch_size}", final_patch_size)
    folders = tuple(Path(cases_folder) / name for name in case_names)
    for folder in folders:
        if not (folder / IMAGE).is_file():
            raise FileNotFoundError(f"{folder}: no preprocessed case; run `jaxmamba3d preprocess`")
    source = PatchSource(folders, patch_size, final_patch_size, batch_size, foreground_fraction, seed)
    local = batch_size // process_count

    def own_batch(n: int) -> dict[str, np.ndarray]:
        first = n * batch_size + process_index * local
        return source(range(first, first + local))

    # Whole batches, so that every voxel is written once: no samples to put together.
    dataset = grain.MapDataset.range(ENDLESS // local).map(own_batch)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    return iter(dataset.to_iter_dataset(options))
