"""The way back: every exported voxel is nnU-Net's."""

import numpy as np
import pytest
from nnunet_golden import recorded, recorded_arrays, recorded_properties
from tolerances import assert_close, rounding

from jaxmamba3d.data.export import export_segmentation
from jaxmamba3d.data.plans import load_plans
from jaxmamba3d.labels import Labels

EXPORTS = (
    ("hippo", "hippocampus_001", "float32_white"),
    ("hippo", "hippocampus_087", "float16_smooth"),
    ("ct", "ct_b", "float16_smooth"),
    ("ctiso", "iso_a", "float16_smooth"),
    ("ctiso", "iso_b", "float32_smooth"),
    ("mrmask", "mr_b", "float32_smooth"),
)


def load(dataset: str, case: str, kind: str):
    arrays = recorded_arrays(f"{dataset}/export/{case}_{kind}.npz")
    logits = np.moveaxis(arrays["logits"], 0, -1)
    plans = load_plans(recorded(f"{dataset}/nnUNetPlans.json"))
    return arrays, logits, recorded_properties(dataset, case), plans


@pytest.mark.parametrize(("dataset", "case", "kind"), EXPORTS)
def test_segmentation_is_the_recorded_one(dataset, case, kind):
    arrays, logits, properties, plans = load(dataset, case, kind)
    segmentation = export_segmentation(logits, properties, plans)
    assert segmentation.dtype == np.uint8
    np.testing.assert_array_equal(segmentation, arrays["segmentation"])


@pytest.mark.parametrize(("dataset", "case", "kind"), EXPORTS[:2])
def test_probabilities_are_the_recorded_ones(dataset, case, kind):
    arrays, logits, properties, plans = load(dataset, case, kind)
    segmentation, probabilities = export_segmentation(logits, properties, plans, return_probabilities=True)
    np.testing.assert_array_equal(segmentation, arrays["segmentation"])
    expected = np.moveaxis(arrays["probabilities"], 0, -1)
    assert_close(probabilities, expected, rounding("float32", expected.shape[-1]))
    assert probabilities.dtype == np.float32


def test_outside_the_crop_is_background():
    arrays, logits, properties, plans = load(*EXPORTS[-1])
    segmentation, probabilities = export_segmentation(logits, properties, plans, return_probabilities=True)
    np.testing.assert_array_equal(segmentation, arrays["segmentation"])
    (low, high), *_ = properties["bbox_used_for_cropping"]
    # This dataset's first axis after the transpose is the file's last.
    outside = np.concatenate([probabilities[:, :, :low], probabilities[:, :, high:]], axis=2)
    assert outside.size > 0
    np.testing.assert_array_equal(outside, np.broadcast_to([1, 0, 0, 0], outside.shape))


def test_the_lower_class_wins_a_tie():
    _, logits, properties, plans = load(*EXPORTS[-1])
    ties = np.ones_like(logits)
    ties[..., 0] = 0
    segmentation = export_segmentation(ties, properties, plans)
    assert set(np.unique(segmentation)) == {0, 1}
    cropped = properties["shape_after_cropping_and_before_resampling"]
    assert (segmentation == 1).sum() == np.prod(cropped)


def test_regions_are_painted_over_each_other():
    _, logits, properties, plans = load(*EXPORTS[-1])
    labels = Labels({"background": (0,), "whole": (1, 2), "core": (2,)}, regions_class_order=(2, 1))
    regions = np.full((*logits.shape[:3], 2), -200, np.float32)
    regions[1:, ..., 0] = 1e-3
    regions[:, 10:, :, 1] = 3
    segmentation, probabilities = export_segmentation(
        regions, properties, plans, labels=labels, return_probabilities=True
    )
    alone = export_segmentation(regions, properties, plans, labels=labels)
    np.testing.assert_array_equal(alone, segmentation)
    whole, core = np.moveaxis(probabilities, -1, 0)
    np.testing.assert_array_equal(segmentation, np.where(core > 0.5, 1, np.where(whole > 0.5, 2, 0)))
    assert set(np.unique(segmentation)) == {0, 1, 2}
    assert probabilities.min() == 0  # outside the crop
    np.testing.assert_allclose(probabilities.max((0, 1, 2)), 1 / (1 + np.exp([-1e-3, -3])), rtol=1e-6)


def test_a_region_is_where_its_probability_is_above_a_half():
    _, logits, properties, plans = load(*EXPORTS[-1])
    labels = Labels({"background": (0,), "whole": (1, 2), "core": (2,)}, regions_class_order=(1, 2))
    nothing = np.zeros((*logits.shape[:3], 2), np.float32)
    assert not export_segmentation(nothing, properties, plans, labels=labels).any()


def test_an_order_of_regions_means_nothing_without_regions():
    _, logits, properties, plans = load(*EXPORTS[-1])
    labels = Labels({"background": (0,), "a": (1,), "b": (2,), "c": (3,)}, regions_class_order=(3, 2, 1))
    expected = export_segmentation(logits, properties, plans)
    np.testing.assert_array_equal(export_segmentation(logits, properties, plans, labels=labels), expected)


def test_probabilities_of_classes_add_up_to_one():
    _, logits, properties, plans = load(*EXPORTS[-1])
    expected = export_segmentation(logits, properties, plans)
    segmentation, probabilities = export_segmentation(logits, properties, plans, return_probabilities=True)
    np.testing.assert_array_equal(segmentation, expected)
    np.testing.assert_array_equal(probabilities.argmax(-1), expected)
    assert probabilities.min() >= 0
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-6)


def test_logits_of_another_shape_are_refused():
    _, logits, properties, plans = load(*EXPORTS[-1])
    with pytest.raises(ValueError, match=r"logits must have shape \[X, Y, Z, K\] = \[24, 68, 74, any\]"):
        export_segmentation(logits[1:], properties, plans)
    with pytest.raises(ValueError, match="configuration must be one of"):
        export_segmentation(logits, properties, plans, "3d_halfres")
