"""Arrays segmented by a trained run."""

import jax.numpy as jnp
import nibabel
import numpy as np
import pytest
from small_datasets import AFFINE, image_and_label, write_nifti

import jaxmamba3d
from jaxmamba3d import experiment
from jaxmamba3d.data import find_images, read_volume


@pytest.fixture(scope="module")
def segmenter(finished):
    return jaxmamba3d.Segmenter(finished[0])


def test_equals_what_is_predicted_for_files(finished, segmenter, tmp_path):
    """Of any size and spacing; post-processed, as is said of the run, or not."""
    run, _ = finished
    for number, (shape, spacing) in enumerate((((5, 7, 3), (1.0, 1.0, 1.0)), ((30, 9, 17), (0.7, 1.5, 1.0)))):
        image, _ = image_and_label(number, 2, shape)
        for channel in range(2):
            file = tmp_path / "in" / f"x{number}_{channel:04d}.nii.gz"
            write_nifti(file, image[..., channel], AFFINE @ np.diag([*spacing, 1]))
    cases = find_images(tmp_path / "in", 2)
    plain = jaxmamba3d.Segmenter(
        run.folder, folds=[0], checkpoint="best", mirroring=True, postprocessing=False
    )
    settings = {"folds": [0], "checkpoint": "best", "mirroring": True}
    experiment.predict(run, cases, tmp_path / "plain", **settings)
    experiment.predict(run, cases, tmp_path / "out", folds=[0], postprocessing=run.postprocessing())
    for case in cases:
        volume = read_volume(case.images)
        for segment, folder in ((segmenter, "out"), (plain, "plain")):
            expected = np.asarray(nibabel.load(tmp_path / folder / f"{case.name}.nii.gz").dataobj).T
            before = volume.array.copy()
            found = segment(volume.array, volume.spacing)
            np.testing.assert_array_equal(found, expected)
            np.testing.assert_array_equal(volume.array, before)
            assert found.dtype == np.uint8


def test_takes_arrays_of_any_numbers(segmenter):
    image = np.moveaxis(image_and_label(0, 2, (6, 7, 8))[0], -1, 0)
    expected = segmenter(image, (1, 1, 1))
    for same in (jnp.asarray(image), image.astype(np.float64), image.tolist()):
        np.testing.assert_array_equal(segmenter(same, np.ones(3)), expected)


@pytest.mark.parametrize(
    ("shape", "spacing", "message"),
    [
        ((1, 4, 4, 4), (1, 1, 1), r"image must have shape \[C, Z, Y, X\] = \[2, any, any, any\], got"),
        ((4, 4, 4), (1, 1, 1), r"image must have shape .*, got \[4, 4, 4\]"),
        ((2, 4, 4, 4), (1, 1), r"spacing must be three lengths from 0.001 to 100 mm, .*, got \(1, 1\)"),
        ((2, 4, 4, 4), (1, 1, 0), r"spacing must be three lengths .*, got \(1, 1, 0\)"),
        ((2, 4, 4, 4), (1000, 1, 1), r"spacing must be three lengths .*, got \(1000, 1, 1\)"),
        ((2, 4, 4, 4), 1.0, r"spacing must be three lengths .*, got 1.0"),
    ],
)
def test_impossible_images_are_named(segmenter, shape, spacing, message):
    with pytest.raises(ValueError, match=message):
        segmenter(np.ones(shape), spacing)


def test_images_that_are_not_finite_are_refused(segmenter):
    with pytest.raises(ValueError, match="image must be finite, got NaN or infinite voxels"):
        segmenter(np.full((2, 4, 4, 4), np.nan), (1, 1, 1))
    with pytest.raises(ValueError, match="image must be of real numbers, got complex128"):
        segmenter(np.ones((2, 4, 4, 4), complex), (1, 1, 1))


def test_some_fold_must_be_named(finished):
    with pytest.raises(ValueError, match=r"folds must be at least one fold, got \[\]"):
        jaxmamba3d.Segmenter(finished[0], folds=[])


def test_a_run_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: not a run folder"):
        jaxmamba3d.Segmenter(tmp_path / "nowhere")
