"""Room on disk for preprocessed cases."""

import logging
import math
import shutil
from pathlib import Path

from jaxmamba3d.checks import check_that
from jaxmamba3d.data.plans import Configuration
from jaxmamba3d.wording import memory

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
