"""Several models' predictions become one segmentation."""

import json

import nibabel
import numpy as np
import pytest
from small_datasets import write_nifti

from jaxmamba3d.data import ensemble_folders
from jaxmamba3d.labels import Labels

SHAPE = (4, 5, 6)  # [Z, Y, X]
CLASSES = Labels({"background": (0,), "left": (1,), "right": (2,)})
REGIONS = Labels({"background": (0,), "whole": (1, 2), "core": (2,)}, regions_class_order=(1, 2))


def probabilities_of(seed: int, labels: Labels) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(0, 2, (labels.outputs, *SHAPE)).astype(np.float32)
    if labels.has_regions:
        return 1 / (1 + np.exp(-logits))
    shares = np.exp(logits)
    return shares / shares.sum(axis=0)


def write_predictions(folder, probabilities, labels=None, *, case="a"):
    shape = probabilities.shape[:0:-1]
    write_nifti(folder / f"{case}.nii.gz", np.zeros(shape, np.uint8))
    np.savez_compressed(folder / f"{case}.npz", probabilities=probabilities)
    if labels is not None:
        (folder / "dataset.json").write_text(json.dumps(labels.to_json()))
    return folder


def models(tmp_path, labels, count=3):
    found = [probabilities_of(seed, labels) for seed in range(count)]
    folders = [write_predictions(tmp_path / f"model_{n}", each, labels) for n, each in enumerate(found)]
    return folders, np.mean(np.float64(found), axis=0)


def test_the_best_class_of_the_mean(tmp_path):
    folders, mean = models(tmp_path, CLASSES)
    ensemble_folders(folders, tmp_path / "out", probabilities=True)
    written = nibabel.load(tmp_path / "out" / "a.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj).T, mean.argmax(axis=0))
    np.testing.assert_array_equal(written.affine, nibabel.load(folders[0] / "a.nii.gz").affine)
    with np.load(tmp_path / "out" / "a.npz") as arrays:
        np.testing.assert_allclose(arrays["probabilities"], mean, rtol=1e-6)
        assert arrays["probabilities"].dtype == np.float32
    assert Labels.from_json(json.loads((tmp_path / "out" / "dataset.json").read_text())) == CLASSES


def test_regions_where_their_mean_is_above_a_half(tmp_path):
    folders, (whole, core) = models(tmp_path, REGIONS)
    ensemble_folders(folders, tmp_path / "out", processes=2)
    written = np.asarray(nibabel.load(tmp_path / "out" / "a.nii.gz").dataobj).T
    np.testing.assert_array_equal(written, np.where(core > 0.5, 2, np.where(whole > 0.5, 1, 0)))
    assert len(np.unique(written)) == 3
    assert not (tmp_path / "out" / "a.npz").exists()


def test_without_a_description_channels_are_classes(tmp_path):
    shares = np.zeros((3, *SHAPE), np.float32)
    shares[0], shares[2, 0] = 0.4, 0.6
    folders = [write_predictions(tmp_path / name, shares) for name in "ab"]
    ensemble_folders(folders, tmp_path / "out")
    written = np.asarray(nibabel.load(tmp_path / "out" / "a.nii.gz").dataobj).T
    assert (written[0] == 2).all()
    assert (written[1:] == 0).all()
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_one_folder_is_no_ensemble(tmp_path):
    folder = write_predictions(tmp_path / "a", probabilities_of(0, CLASSES))
    for folders in ([folder], [folder, tmp_path / "b" / ".." / "a"]):
        with pytest.raises(ValueError, match="predictions must be two or more different folders"):
            ensemble_folders(folders, tmp_path / "out")


def test_every_folder_has_every_case(tmp_path):
    (one, two), _ = models(tmp_path, CLASSES, count=2)
    write_predictions(one, probabilities_of(5, CLASSES), case="b")
    with pytest.raises(ValueError, match=r"predictions in .*model_1 must be .* the 2 cases .*not both of b"):
        ensemble_folders([one, two], tmp_path / "out")
    write_nifti(two / "b.nii.gz", np.zeros(SHAPE[::-1], np.uint8))
    with pytest.raises(ValueError, match=r"not both of b$"):
        ensemble_folders([one, two], tmp_path / "out")
    for path in two.glob("*.npz"):
        path.unlink()
    with pytest.raises(ValueError, match=r"model_1 must be made by `predict --probabilities`"):
        ensemble_folders([one, two], tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        ensemble_folders([one, tmp_path / "missing"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_models_of_other_labels(tmp_path):
    one = write_predictions(tmp_path / "one", probabilities_of(0, CLASSES), CLASSES)
    swapped = Labels({"background": (0,), "right": (1,), "left": (2,)})
    two = write_predictions(tmp_path / "two", probabilities_of(1, CLASSES), swapped)
    with pytest.raises(ValueError, match=r"two/dataset\.json must be of the labels of .*one/dataset\.json"):
        ensemble_folders([one, two], tmp_path / "out")


def test_nothing_is_overwritten(tmp_path):
    folders, _ = models(tmp_path, CLASSES)
    for output in (folders[0], tmp_path):
        with pytest.raises(ValueError, match=r"output must be an empty folder, or a new one, got .* with "):
            ensemble_folders(folders, output)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "no archive, or a part of one"),
        (lambda path: np.savez(path, shares=np.zeros(3)), "a whole file of probabilities"),
        (
            lambda path: np.savez(path, probabilities=np.zeros((3, *SHAPE), np.int32)),
            r"got int32\[3, 4, 5, 6\]",
        ),
        (
            lambda path: np.savez(path, probabilities=np.zeros((3, 4, 5, 7))),
            r"model_0/a.npz's shape \[3, 4, 5, 6\]",
        ),
        (
            lambda path: np.savez(path, probabilities=np.zeros((2, *SHAPE))),
            r"shape \[3, 4, 5, 6\], got \[2, ",
        ),
    ],
)
def test_bad_files_are_named_and_the_other_cases_written(tmp_path, spoil, message):
    folders, _ = models(tmp_path, CLASSES, count=2)
    for folder in folders:
        write_predictions(folder, probabilities_of(7, CLASSES), case="b")
    spoil(folders[1] / "a.npz")
    with pytest.raises(ValueError, match=rf"^1 of 2 cases are bad .*\na: .*model_1.*{message}"):
        ensemble_folders(folders, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").glob("*.nii.gz")] == ["b.nii.gz"]


def test_files_that_do_not_fit_the_image(tmp_path):
    folders = [write_predictions(tmp_path / name, probabilities_of(0, CLASSES), CLASSES) for name in "ab"]
    write_nifti(folders[1] / "a.nii.gz", np.zeros(SHAPE[::-1], np.uint8), np.diag([2.0, 3.0, 5.0, 1.0]))
    with pytest.raises(ValueError, match=r"a: .*b/a.nii.gz must have .*a/a.nii.gz's affine"):
        ensemble_folders(folders, tmp_path / "out")
    for folder in folders:
        write_nifti(folder / "a.nii.gz", np.zeros((6, 5, 5), np.uint8))
    with pytest.raises(ValueError, match=r"a/a.npz must be of shape \[3, z, y, x\], as labels and image are"):
        ensemble_folders(folders, tmp_path / "other")
