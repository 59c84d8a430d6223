"""Connected components of masks."""

from collections.abc import Iterable, Sequence

import numpy as np
from scipy.ndimage import find_objects, label


def smaller_components(mask: np.ndarray) -> np.ndarray:
    """The voxels of a mask that lie in none of its largest components.

    Voxels that share a face, an edge or a corner are connected (26 neighbours in 3D), and all components of
    the largest size count as largest, as in acvl_utils' `remove_all_but_largest_component`, nnU-Net's.

    Args:
        mask: [X, Y, Z], bool.

    Returns:
        [X, Y, Z], bool.
    """
    smaller = np.zeros_like(mask)
    if (box := find_objects(mask.view(np.uint8))) and box[0] is not None:
        components, count = label(mask[box[0]], structure=np.ones((3,) * mask.ndim))
        if count > 1:
            sizes = np.bincount(components.ravel())
            is_smaller = sizes < sizes[1:].max()
            is_smaller[0] = False
            smaller[box[0]] = is_smaller[components]
    return smaller


def keep_largest(segmentation: np.ndarray, steps: Iterable[Sequence[int]]) -> np.ndarray:
    """Sets all but the largest components of structures to 0, one structure after the other.

    Args:
        segmentation: labels [X, Y, Z], whole numbers.
        steps: the label values whose union each structure is.

    Returns:
        [X, Y, Z] of the same dtype; the argument is left as it is.
    """
    segmentation = segmentation.copy()
    for values in steps:
        segmentation[smaller_components(np.isin(segmentation, values))] = 0
    return segmentation
