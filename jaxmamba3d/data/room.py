"""Room for preprocessed cases, on disk and in memory."""

import logging
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

from jaxmamba3d.checks import check_that
from jaxmamba3d.data.plans import Configuration
from jaxmamba3d.machine import memory_bytes
from jaxmamba3d.wording import memory, sizes

WORKING_BYTES = 16
"""Of a voxel, besides its channels: resampling holds float64, and predictions of many classes as much."""

logger = logging.getLogger(__name__)


def check_room(folder: Path, configuration: Configuration, cases: int) -> None:
    """Compares the free space with what cases of the plans' median size take; warns if it is less.

    Args:
        folder: that they are written to; must be there.
        configuration: that they are preprocessed for.
        cases: how many.

    Raises:
        ValueError: it is less than half of that.
    """
    channels = len(configuration.normalization_schemes)
    needed = cases * math.prod(configuration.median_image_size) * (4 * channels + 2)  # float32 and int16
    free = shutil.disk_usage(folder).free
    if free >= needed:
        return
    wanted = f"on a disk with room for about {memory(needed)} of preprocessed cases"
    choose = "make room, or choose another work folder"
    check_that(free >= needed / 2, str(folder), f"{wanted} ({choose})", memory(free))
    logger.warning("%s should be %s, which has %s; %s", folder, wanted, memory(free), choose)


def check_memory(name: str, channels: int, shape: Sequence[int], spacing: Sequence[float]) -> None:
    """Refuses an image that the machine cannot hold, as one whose header tells a wrong spacing.

    Args:
        name: of the image.
        channels: of the image.
        shape: voxels, resampled.
        spacing: mm, in its file, [Z, Y, X].

    Raises:
        ValueError: it needs more memory than the machine has.
    """
    needed = math.prod(shape) * (4 * channels + WORKING_BYTES)
    has = memory_bytes()
    if has is None or needed <= has:
        return
    wanted = f"small enough at the plans' spacing for the machine's memory of {memory(has)}"
    found = f"{sizes(shape)} voxels, which take {memory(needed)}; the file's spacing is {sizes(spacing)} mm"
    check_that(False, name, wanted, found)
