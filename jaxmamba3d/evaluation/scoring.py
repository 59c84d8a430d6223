"""The scores of one case under a protocol."""

import dataclasses
import math

import numpy as np

from jaxmamba3d.evaluation.metrics import dice, hausdorff95_of, surface_distances, surface_share_within
from jaxmamba3d.evaluation.protocols import Protocol
from jaxmamba3d.evaluation.segmentations import Pair, Segmentation, joint_box, read_segmentation

VOXELS = (1.0, 1.0, 1.0)
VOLUME_DIGITS = 6
"""Significant ones: what follows is the rounding of the headers' voxel sizes."""


@dataclasses.dataclass(frozen=True)
class Score:
    """One structure of one case.

    Args:
        case: the case's name.
        structure: the structure's name in the protocol.
        dice: Dice similarity, 0 to 1.
        hd95_mm: 95th percentile of the surface distances, in mm.
        hd95_voxels: the same with a spacing of 1, in voxels.
        nsd: normalized surface distance at the protocol's tolerance, 0 to 1.
        reference_voxels: voxels of the structure in the reference.
        prediction_voxels: voxels of the structure in the prediction.
        reference_ml: its volume in the reference, in ml, rounded to 6 digits.
        prediction_ml: its volume in the prediction, in ml, likewise.
    """

    case: str
    structure: str
    dice: float
    hd95_mm: float
    hd95_voxels: float
    nsd: float
    reference_voxels: int
    prediction_voxels: int
    reference_ml: float
    prediction_ml: float


def score_case(pair: Pair, protocol: Protocol) -> list[Score]:
    """Reads the two segmentations of a case and scores every structure of the protocol.

    Raises:
        ValueError: a file cannot be read or holds a label that the protocol does not declare.
    """
    prediction, reference = read_segmentation(pair.prediction), read_segmentation(pair.reference)
    allowed = protocol.declared_labels | {protocol.ignore_label}
    for path, found in ((pair.prediction, prediction.boxes), (pair.reference, reference.boxes)):
        undeclared = sorted(set(found) - allowed)
        if undeclared:
            raise ValueError(f"{path}: labels {undeclared}, which protocol {protocol.name} does not declare")
    if protocol.ignore_label is not None:
        kept = reference.labels != protocol.ignore_label
        prediction = dataclasses.replace(prediction, labels=prediction.labels * kept)
    return [
        _score(pair.case, structure, labels, prediction, reference, protocol)
        for structure, labels in protocol.classes.items()
    ]


def _score(
    case: str,
    structure: str,
    labels: tuple[int, ...],
    prediction: Segmentation,
    reference: Segmentation,
    protocol: Protocol,
) -> Score:
    boxes = [seg.boxes[label] for seg in (prediction, reference) for label in labels if label in seg.boxes]
    # Outside the joint box both masks are empty, and a mask's surface is the same when it is cut there.
    box = joint_box(boxes) or (slice(0),) * 3
    ours, theirs = (np.isin(seg.labels[box], labels) for seg in (prediction, reference))
    voxels = [int(np.count_nonzero(mask)) for mask in (theirs, ours)]
    distances_mm = surface_distances(ours, theirs, reference.spacing)
    isotropic = len(set(reference.spacing)) == 1
    distances_voxels = (
        distances_mm / reference.spacing[0] if isotropic else surface_distances(ours, theirs, VOXELS)
    )

    def hd95(distances: np.ndarray, spacing: tuple[float, ...]) -> float:
        value = hausdorff95_of(distances)
        if math.isnan(value):
            return protocol.hd95_both_absent
        if math.isfinite(value):
            return value
        if protocol.hd95_one_absent == "diagonal":
            return math.hypot(*(n * size for n, size in zip(reference.labels.shape, spacing, strict=True)))
        return float(protocol.hd95_one_absent)

    volumes_ml = [
        float(f"{count * math.prod(reference.spacing) / 1000:.{VOLUME_DIGITS}g}") for count in voxels
    ]
    return Score(
        case=case,
        structure=structure,
        dice=float(dice(ours, theirs)) if any(voxels) else protocol.dice_both_absent,
        hd95_mm=hd95(distances_mm, reference.spacing),
        hd95_voxels=hd95(distances_voxels, VOXELS),
        nsd=surface_share_within(distances_mm, protocol.nsd_tolerance_mm),
        reference_voxels=voxels[0],
        prediction_voxels=voxels[1],
        reference_ml=volumes_ml[0],
        prediction_ml=volumes_ml[1],
    )
