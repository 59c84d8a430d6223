"""Connected components of masks and segmentations."""

from collections.abc import Iterable, Sequence

import numpy as np
from scipy.ndimage import find_objects, label

from jaxmamba3d.evaluation.segmentations import Box, joint_box


def smaller_components(mask: np.ndarray) -> np.ndarray:
    """The voxels of a mask that lie in none of its largest components.

    Voxels that share a face, an edge or a corner are connected (26 neighbours in 3D), and all components of
    the largest size count as largest, as in acvl_utils' `remove_all_but_largest_component`, nnU-Net's.

    Args:
        mask: [X, Y, Z], bool.

    Returns:
        [X, Y, Z], bool.
    """
    components, count = label(mask, structure=np.ones((3,) * mask.ndim))
    if count < 2:
        return np.zeros_like(mask)
    sizes = np.bincount(components.ravel())
    is_smaller = sizes < sizes[1:].max()
    is_smaller[0] = False
    return is_smaller[components]


def boxes_of(segmentation: np.ndarray, structures: Iterable[Sequence[int]]) -> list[Box]:
    """For each structure the smallest box that holds it, empty where it is absent.

    Args:
        segmentation: labels [X, Y, Z], whole numbers from 0.
        structures: the label values whose union each is.
    """
    found = find_objects(segmentation) if segmentation.size else []
    boxes = dict(enumerate(found, 1))
    nothing = (slice(0),) * segmentation.ndim
    return [
        joint_box(box for value in values if (box := boxes.get(value))) or nothing for values in structures
    ]


def keep_largest(segmentation: np.ndarray, structures: Sequence[Sequence[int]]) -> np.ndarray:
    """Sets all but the largest components of structures to 0, one structure after the other.

    Args:
        segmentation: labels [X, Y, Z], whole numbers from 0.
        structures: the label values whose union each is.

    Returns:
        [X, Y, Z] of the same dtype; the argument is left as it is.
    """
    segmentation = segmentation.copy()
    for values, box in zip(structures, boxes_of(segmentation, structures), strict=True):
        part = segmentation[box]
        part[smaller_components(np.isin(part, values))] = 0
    return segmentation
