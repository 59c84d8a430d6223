"""From logits at the plans' spacing back to a segmentation of the image file: preprocessing inverted."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import expit, softmax

from jaxmamba3d.checks import check_choice, check_shape
from jaxmamba3d.data.planewise import PlaneResampler
from jaxmamba3d.data.plans import Plans
from jaxmamba3d.data.resampling import resampled_shape, separate_axis
from jaxmamba3d.labels import Labels


def export_segmentation(
    logits: np.ndarray,
    properties: Mapping[str, Any],
    plans: Plans,
    configuration: str = "3d_fullres",
    *,
    labels: Labels | None = None,
    return_probabilities: bool = False,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Resamples logits to the image's own voxels, takes the best class and undoes crop and transpose.

    Args:
        logits: [X, Y, Z, K], at the shape of the preprocessed image, K at most 256.
        properties: of the preprocessed case.
        plans: that the case was preprocessed with.
        configuration: likewise.
        labels: of the dataset; needed where they are regions. None: channel k is class k.
        return_probabilities: also return the probabilities, from which the segmentation is then taken.

    Returns:
        uint8 in the array order of the image file read as z, y, x; class 0 outside the crop. With
        `return_probabilities` also the probabilities [z, y, x, K] float32 (softmax, or sigmoid of regions);
        outside the crop 1 for class 0, and 0 for the others and for regions.

    Raises:
        ValueError: the logits do not have the shape that preprocessing gave the image.

    Numerics: logits are resampled in float64 and rounded to their own dtype; of equal logits the lower class
    wins; a region is where the probability is above 0.5.

    Source: nnU-Net, inference/export_prediction.py.
    """
    export = SegmentationExport(
        properties, plans, configuration, labels=labels, return_probabilities=return_probabilities
    )
    check_shape("logits", logits, "[X, Y, Z, K]", (*export.shape, None))
    for plane in logits:
        export.add(plane)
    return export.result()


class SegmentationExport:
    """`export_segmentation` of logits that arrive plane by plane along X.

    Args:
        properties, plans, configuration, labels, return_probabilities: see `export_segmentation`.
    """

    def __init__(
        self,
        properties: Mapping[str, Any],
        plans: Plans,
        configuration: str = "3d_fullres",
        *,
        labels: Labels | None = None,
        return_probabilities: bool = False,
    ):
        check_choice("configuration", configuration, plans.configurations)
        new_spacing = plans.configurations[configuration].spacing
        spacing = [properties["spacing"][axis] for axis in plans.transpose_forward]
        cropped = tuple(properties["shape_after_cropping_and_before_resampling"])
        self.shape = resampled_shape(cropped, spacing, new_spacing)
        self._backward = tuple(plans.transpose_backward)
        self._inside = tuple(slice(low, high) for low, high in properties["bbox_used_for_cropping"])
        self._resampler = PlaneResampler(self.shape, cropped, separate_axis(new_spacing, spacing))
        self._labels = labels
        self._has_regions = labels is not None and labels.has_regions
        self._segmentation = np.zeros(properties["shape_before_cropping"], np.uint8)
        self._return_probabilities = return_probabilities
        self._probabilities: np.ndarray | None = None
        self._row = self._inside[0].start

    def add(self, plane: np.ndarray) -> None:
        """Takes the next plane of logits [Y, Z, K] of a volume of `shape`."""
        for logits in self._resampler.add(plane):
            if self._return_probabilities or self._has_regions:
                logits = self._to_probabilities(logits)
            if self._return_probabilities:
                self._kept(logits.shape[-1])[self._row, *self._inside[1:]] = logits
            self._segmentation[self._row, *self._inside[1:]] = best_labels(logits, self._labels)
            self._row += 1

    def result(self) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """What `export_segmentation` returns, once all planes are there."""
        assert self._row == self._inside[0].stop, "planes are missing"
        segmentation = self._segmentation.transpose(self._backward)
        if not self._return_probabilities:
            return segmentation
        return segmentation, self._probabilities.transpose(*self._backward, 3)

    def _to_probabilities(self, logits: np.ndarray) -> np.ndarray:
        logits = logits.astype(np.float32)
        return expit(logits) if self._has_regions else softmax(logits, axis=-1)

    def _kept(self, channels: int) -> np.ndarray:
        """The probabilities of the whole image, made with its first plane."""
        if self._probabilities is None:
            self._probabilities = np.zeros((*self._segmentation.shape, channels), np.float32)
            if not self._has_regions:
                self._probabilities[..., 0] = 1
        return self._probabilities


def best_labels(scores: np.ndarray, labels: Labels | None) -> np.ndarray:
    """The values of a segmentation: of the best class, or of the regions whose probability is above 0.5.

    Args:
        scores: [..., K], logits or probabilities of classes, or probabilities of regions.
        labels: of the dataset; None: channel k is class k.

    Returns:
        [...], integers; of equal scores the lower class wins, of overlapping regions the last.
    """
    if labels is None or not labels.has_regions:
        return scores.argmax(axis=-1)
    painted = np.zeros(scores.shape[:-1], np.uint8)
    for region, value in enumerate(labels.regions_class_order):
        painted[scores[..., region] > 0.5] = value
    return painted
