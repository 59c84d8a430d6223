"""The made-up dataset: layout, variety, and that it takes more than a threshold."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import nibabel
import numpy as np
import pytest

from jaxmamba3d.config import PhantomConfig
from jaxmamba3d.data import phantoms
from jaxmamba3d.data.phantoms import make_phantom, write_phantom_dataset

CONFIG = PhantomConfig(cases=6, seed=3)
CLASSES = (1, 2, 3)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "phantoms"
    write_phantom_dataset(folder, CONFIG)
    return folder


def read_case(folder, number):
    return [nibabel.load(folder / part / f"phantom_{number:03d}.nii.gz") for part in ("imagesTr", "labelsTr")]


def voxels(image):
    return np.asarray(image.dataobj)


def test_dataset_json_describes_the_files(dataset):
    description = json.loads((dataset / "dataset.json").read_text())
    assert description["modality"] == {"0": "MRI"}
    assert list(description["labels"]) == ["0", "1", "2", "3"]
    assert description["labels"]["0"] == "background"
    assert description["numTraining"] == len(description["training"]) == CONFIG.cases
    listed = {str((dataset / entry[key]).resolve()) for entry in description["training"] for key in entry}
    assert listed == {str(path) for path in dataset.resolve().glob("*Tr/*.nii.gz")}
    assert [path.name for path in dataset.parent.iterdir()] == ["phantoms"]


def test_volumes_have_the_geometry_asked_for(dataset):
    shapes = set()
    for number in range(CONFIG.cases):
        image, label = read_case(dataset, number)
        assert (image.get_data_dtype(), label.get_data_dtype()) == (np.int16, np.uint8)
        assert image.shape == label.shape
        np.testing.assert_array_equal(image.affine, label.affine)
        assert image.header.get_zooms() == CONFIG.spacing[::-1]
        # Rows run to the patient's left, columns to the back, slices upwards.
        assert nibabel.aff2axcodes(image.affine) == ("L", "P", "S")
        assert np.all(np.abs(np.array(image.shape[::-1]) / CONFIG.shape - 1) <= 0.1)
        shapes.add(image.shape)
    assert len(shapes) > CONFIG.cases // 2


def test_organs_are_where_they_belong(dataset):
    """The liver on the right and the largest, the lesion in it, a kidney on either side, lower and behind."""
    sizes = []
    for number in range(CONFIG.cases):
        image, label = (voxels(x) for x in read_case(dataset, number))
        liver, kidneys, lesion = (np.argwhere(label == k) / label.shape for k in CLASSES)
        sizes.append([len(liver), len(kidneys), len(lesion)])
        assert len(liver) > len(kidneys) > len(lesion) > 20
        assert liver[:, 0].mean() < 0.45
        assert kidneys[:, 0].min() < 0.4 < 0.6 < kidneys[:, 0].max()
        assert kidneys[:, 1].mean() > liver[:, 1].mean() + 0.1
        assert kidneys[:, 2].mean() < liver[:, 2].mean()
        assert np.all(liver.min(0) - 0.05 <= lesion.min(0))
        assert np.all(lesion.max(0) <= liver.max(0) + 0.05)
        assert image.min() >= 0
        assert image.std() > 50
    assert np.all(np.std(sizes, 0) > 0.05 * np.mean(sizes, 0))


def best_threshold_dice(image, region):
    """Dice of the best of all intensity intervals, chosen with the truth at hand."""
    edges = np.linspace(image.min(), image.max() + 1, 60)
    inside = np.cumsum([0, *np.histogram(image[region], edges)[0]])
    every = np.cumsum([0, *np.histogram(image, edges)[0]])
    hits, found = (np.maximum(x[None] - x[:, None], 0) for x in (inside, every))
    return np.max(2 * hits / (found + region.sum()))


def test_thresholds_do_not_segment_it(dataset):
    """But organs differ from what surrounds them: a liver as bright as muscle could not be learnt either."""
    cases = [[voxels(x).astype(float) for x in read_case(dataset, number)] for number in range(CONFIG.cases)]
    images, labels = (np.concatenate([array.ravel() for array in part]) for part in zip(*cases, strict=True))
    for k in CLASSES:
        assert best_threshold_dice(images, labels == k) < 0.7
    for image, label in cases:
        body = label[image > 100] == 0
        liver, kidneys, lesion = (image[label == k].mean() for k in CLASSES)
        assert liver > image[image > 100][body].mean()
        assert min(kidneys, lesion) > 1.1 * liver


def test_every_class_is_in_every_case():
    smallest = PhantomConfig(shape=(16, 16, 16), spacing=(3.0, 1.0, 1.0))
    for config in (CONFIG, smallest):
        for seed in range(25):
            _, label = make_phantom(np.random.default_rng(seed), config)
            assert set(np.unique(label)) == {0, 1, 2, 3}


def test_proportions_do_not_depend_on_the_resolution():
    """The same body on a finer grid: each class keeps its share of the volume within the variety of cases."""
    shares = []
    for factor in (1, 2):
        config = PhantomConfig(shape=tuple(factor * n for n in (20, 32, 32)), spacing=(2.0, 1.0, 1.0))
        labels = [make_phantom(np.random.default_rng(seed), config)[1] for seed in range(8)]
        shares.append([np.mean([np.mean(label == k) for label in labels]) for k in CLASSES])
    np.testing.assert_allclose(shares[1], shares[0], rtol=0.4)


def test_a_case_depends_on_seed_and_number_alone(dataset, tmp_path):
    write_phantom_dataset(tmp_path / "more", PhantomConfig(cases=7, seed=3))
    write_phantom_dataset(tmp_path / "other", PhantomConfig(cases=5, seed=4))
    for number in (0, 5):
        for a, b in zip(read_case(dataset, number), read_case(tmp_path / "more", number), strict=True):
            np.testing.assert_array_equal(voxels(a), voxels(b))
    firsts = [voxels(read_case(folder, 0)[0]) for folder in (dataset, tmp_path / "other")]
    assert not np.array_equal(*firsts)


def test_an_existing_folder_is_left_alone(dataset):
    before = sorted(dataset.rglob("*"))
    with pytest.raises(FileExistsError, match="phantoms: already there; choose another folder"):
        write_phantom_dataset(dataset, CONFIG)
    assert sorted(dataset.rglob("*")) == before


def test_of_two_that_write_it_the_second_waits_for_the_first(tmp_path, monkeypatch):
    def write_once_the_other_waits(*arguments):
        assert waits.wait(60)
        write(*arguments)

    folder, waits, write = tmp_path / "phantoms", threading.Event(), phantoms._write
    monkeypatch.setattr(phantoms, "_write", write_once_the_other_waits)
    monkeypatch.setattr(phantoms.logger, "info", lambda text, _: waits.set())
    with ThreadPoolExecutor(2) as both:
        for done in [both.submit(write_phantom_dataset, folder, CONFIG) for _ in range(2)]:
            done.result()
    assert [path.name for path in tmp_path.iterdir()] == ["phantoms"]
    assert len(list(folder.rglob("*.nii.gz"))) == 2 * CONFIG.cases


def test_a_killed_run_leaves_no_dataset_and_is_no_obstacle(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("nibabel.save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_phantom_dataset(tmp_path / "data", PhantomConfig(cases=5))
    assert not (tmp_path / "data").exists()
    write_phantom_dataset(tmp_path / "data", PhantomConfig(cases=5))
    assert len(list((tmp_path / "data" / "imagesTr").iterdir())) == 5
