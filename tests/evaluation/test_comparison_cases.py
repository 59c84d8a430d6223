"""Which cases a comparison figure shows, and the files they are read from."""

import numpy as np
import pytest
from small_datasets import write_nifti

from jaxmamba3d.evaluation import evaluate_folders, find_models, read_comparison_cases, telling_cases

SHAPE = (5, 24, 24)


def square(rows):
    labels = np.zeros(SHAPE, np.uint8)
    labels[2, slice(*rows), 8:16] = 1
    return labels


TRUTH = square((8, 16))


@pytest.fixture
def models(tmp_path):
    """Two models of five cases, ever better; the images of two channels have a file each."""
    for number in range(5):
        for channel in range(2):
            image = np.full(SHAPE, 10.0 * number + channel, np.float32)
            write_nifti(tmp_path / "images" / f"c{number}_{channel:04d}.nii.gz", image.T)
        write_nifti(tmp_path / "labels" / f"c{number}.nii.gz", TRUTH.T)
        for name, rows in (("a", (12 - number, 16)), ("b", (11 - number, 16 - number // 4))):
            write_nifti(tmp_path / name / f"c{number}.nii.gz", square(rows).T)
    for name in "ab":
        evaluate_folders(tmp_path / name, tmp_path / "labels", tmp_path / name / "scores", progress=False)
    return find_models([tmp_path / "a", tmp_path / "b"])


def test_cases_are_taken_from_the_worst_to_the_best(models):
    assert telling_cases(models, 3) == ["c0", "c2", "c3"]
    assert telling_cases(models, 4) == ["c0", "c1", "c4", "c3"]
    assert len(telling_cases(models, 9)) == 5
    assert telling_cases(models, 1) == ["c0"]


def test_cases_are_read_from_their_folders(models, tmp_path):
    folders = tmp_path / "images", tmp_path / "labels"
    (case,) = read_comparison_cases(models, ["c3"], *folders, channel=1)
    assert np.all(case.image == 31)
    np.testing.assert_array_equal(case.truth, TRUTH)
    np.testing.assert_array_equal(case.predictions["b"], square((8, 16)))
    assert case.dice["b"] == 1 > case.dice["a"]
    assert case.spacing == (2.0, 1.5, 1.0)
    (case,) = read_comparison_cases(models, ["c3"], *folders, predictions=[tmp_path / "b", tmp_path / "a"])
    np.testing.assert_array_equal(case.predictions["a"], TRUTH)
    # All channels in one file.
    write_nifti(tmp_path / "whole" / "c3.nii.gz", np.stack([TRUTH.T, 5 + TRUTH.T], -1))
    (case,) = read_comparison_cases(models, ["c3"], tmp_path / "whole", folders[1], channel=1)
    np.testing.assert_array_equal(case.image, 5.0 + TRUTH)
    with pytest.raises(ValueError, match="channel of c3 must be below 2, got 2"):
        read_comparison_cases(models, ["c3"], tmp_path / "whole", folders[1], channel=2)
    missing = r"c3\.nii\.gz: no such file in .*empty; name the folder .* with --predictions"
    with pytest.raises(FileNotFoundError, match=missing):
        read_comparison_cases(models, ["c3"], *folders, predictions=[tmp_path / "empty"] * 2)
    with pytest.raises(
        FileNotFoundError, match=r"c3\.nii\.gz: no such file in .*images, nor c3_0007\.nii\.gz"
    ):
        read_comparison_cases(models, ["c3"], *folders, channel=7)
    with pytest.raises(ValueError, match="channel must be 0 or greater, got -1"):
        read_comparison_cases(models, ["c3"], *folders, channel=-1)
    write_nifti(tmp_path / "other" / "c3.nii.gz", TRUTH[:4].T)
    with pytest.raises(ValueError, match=r"c3: truth must have shape \[X, Y, Z\] of the image"):
        read_comparison_cases(models, ["c3"], folders[0], tmp_path / "other")
    with pytest.raises(ValueError, match="cases must be among the scored ones, got c9"):
        read_comparison_cases(models, ["c9"], *folders)
    with pytest.raises(ValueError, match="predictions must be one folder for each of the 2 models"):
        read_comparison_cases(models, ["c3"], *folders, predictions=[tmp_path])


def test_segmentations_that_lie_elsewhere_are_refused(models, tmp_path):
    """Though they are of the image's shape."""
    write_nifti(tmp_path / "b" / "c3.nii.gz", square((8, 16)).T, np.diag([-1.0, 1.5, 2.0, 1.0]))
    with pytest.raises(
        ValueError, match=r"b/c3\.nii\.gz must lie where the image does, got voxels up to \d+"
    ):
        read_comparison_cases(models, ["c3"], tmp_path / "images", tmp_path / "labels")


def test_what_is_stored_upside_down_is_turned_over(models, tmp_path):
    """Image, truth and predictions alike."""
    affine = np.diag([1.0, -1.5, 2.0, 1.0])
    rows = np.broadcast_to(np.arange(24.0, dtype=np.float32)[:, None], SHAPE)
    write_nifti(tmp_path / "images" / "c3_0000.nii.gz", rows.T, affine)
    for folder, labels in (("labels", square((2, 5))), ("a", square((3, 5))), ("b", square((4, 5)))):
        write_nifti(tmp_path / folder / "c3.nii.gz", labels.T, affine)
    (case,) = read_comparison_cases(models, ["c3"], tmp_path / "images", tmp_path / "labels")
    np.testing.assert_array_equal(case.image, rows[:, ::-1])
    np.testing.assert_array_equal(case.truth, square((19, 22)))
    np.testing.assert_array_equal(case.predictions["a"], square((19, 21)))
