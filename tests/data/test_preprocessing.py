"""Preprocessed cases are nnU-Net's to the bit; a dataset is processed once, safely, and never mixed up."""

import dataclasses
import json
import subprocess
import sys
import tracemalloc

import nibabel
import numpy as np
import pytest
from nnunet_golden import (
    PREPROCESSED,
    raw_files,
    recorded,
    recorded_arrays,
    recorded_properties,
)

from jaxmamba3d.data.cases import Case
from jaxmamba3d.data.dataset import read_dataset
from jaxmamba3d.data.patches import foreground_table
from jaxmamba3d.data.plans import load_plans
from jaxmamba3d.data.preprocessed import preprocess_dataset
from jaxmamba3d.data.preprocessing import preprocess_case

GEOMETRY_OF_NNUNET = {"sitk_stuff", "class_locations"}


@pytest.mark.parametrize(("dataset", "case"), PREPROCESSED)
def test_cases_are_the_recorded_ones(dataset, case):
    plans = load_plans(recorded(f"{dataset}/nnUNetPlans.json"))
    arrays = recorded_arrays(f"{dataset}/{case}_preprocessed.npz")
    done = preprocess_case(*raw_files(dataset, case), plans)

    expected = np.moveaxis(arrays["data"], 0, -1)
    assert done.image.shape == expected.shape
    assert done.image.dtype == np.float32
    assert done.image.flags.c_contiguous
    # Equal where numpy sums as it did when this was recorded; the mean's last bit follows the processor.
    np.testing.assert_allclose(done.image, expected, atol=1e-5, rtol=0)
    assert done.label.dtype == np.int16
    np.testing.assert_array_equal(done.label, arrays["seg"][0])

    properties = recorded_properties(dataset, case)
    for key in properties.keys() - GEOMETRY_OF_NNUNET:
        assert done.properties[key] == properties[key], key
    assert json.loads(json.dumps(done.properties)) == done.properties

    classes = sorted(int(number) for number in properties["class_locations"])
    tables = foreground_table(done.label, [(number,) for number in classes])
    for number, table in zip(classes, tables, strict=True):
        np.testing.assert_array_equal(table, arrays[f"class_locations_{number}"][:, 1:])


def test_the_label_does_not_change_the_image():
    images, label = raw_files("mrmask", "mr_a")
    plans = load_plans(recorded("mrmask/nnUNetPlans.json"))
    with_label, without = preprocess_case(images, label, plans), preprocess_case(images, None, plans)
    assert without.label is None
    np.testing.assert_array_equal(without.image, with_label.image)


def test_an_image_is_in_memory_at_most_twice_where_nothing_is_resampled(tmp_path):
    plans = load_plans(recorded("ctiso/nnUNetPlans.json"))
    spacing = plans.configurations["3d_fullres"].spacing
    backward = [spacing[axis] for axis in plans.transpose_backward]
    path = tmp_path / "ct.nii.gz"
    voxels = np.random.default_rng(0).integers(-1000, 1000, (160, 170, 180)).astype(np.int16)
    nibabel.Nifti1Image(voxels, np.diag([*backward[::-1], 1])).to_filename(path)
    tracemalloc.start()
    try:
        done = preprocess_case([path], None, plans)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2.1 * done.image.nbytes
    assert done.image.size == voxels.size


def test_bad_cases_are_refused(tmp_path):
    images, label = raw_files("mrmask", "mr_a")
    plans = load_plans(recorded("mrmask/nnUNetPlans.json"))
    with pytest.raises(ValueError, match=r"mr_a_0000.* must be of 2 channels, got 1"):
        preprocess_case(images[:1], label, plans)
    with pytest.raises(ValueError, match="configuration must be one of"):
        preprocess_case(images, label, plans, "3d_halfres")
    other = tmp_path / "other_label.nii.gz"
    nibabel.Nifti1Image(np.zeros((5, 6, 7), np.uint8), np.eye(4)).to_filename(other)
    with pytest.raises(ValueError, match="other_label"):
        preprocess_case(images, other, plans)


@pytest.fixture
def phantoms(tmp_path):
    """Six small cases in the Decathlon's layout, spacing 1.5 mm, and plans with 1 mm."""
    folder = tmp_path / "Task99_Phantoms"
    generator = np.random.default_rng(0)
    cases = []
    for number in range(6):
        image = generator.normal(100, 20, (14, 12, 10 + number)).astype(np.float32)
        label = np.zeros(image.shape, np.uint8)
        label[3:9, 4:9, 2:6], label[9:12, 4:9, 2:6] = 1, 2
        name = f"phantom_{number}.nii.gz"
        for part, array in (("imagesTr", image), ("labelsTr", label)):
            (folder / part).mkdir(parents=True, exist_ok=True)
            nibabel.Nifti1Image(array, np.diag([1.5, 1.5, 1.5, 1])).to_filename(folder / part / name)
        cases.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    description = {
        "name": "Phantoms",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "front", "2": "back"},
        "numTraining": len(cases),
        "training": cases,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return read_dataset(folder), load_plans(recorded("hippo/nnUNetPlans.json"))


def times(output):
    return {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}


def test_a_dataset_is_written_and_kept(phantoms, tmp_path):
    dataset, plans = phantoms
    output = tmp_path / "cases"
    preprocess_dataset(dataset, plans, "3d_fullres", output, processes=2)
    assert {p.name for p in output.iterdir()} == {case.name for case in dataset.cases} | {
        "configuration.json"
    }
    for case in dataset.cases:
        expected = preprocess_case(case.images, case.label, plans)
        folder = output / case.name
        image, label = (np.load(folder / f"{part}.npy", mmap_mode="r") for part in ("image", "label"))
        np.testing.assert_array_equal(image, expected.image)
        np.testing.assert_array_equal(label, expected.label)
        assert image.flags.c_contiguous
        assert json.loads((folder / "properties.json").read_text()) == expected.properties
        with np.load(folder / "foreground.npz") as table:
            assert sorted(table.files) == ["0", "1"]
            assert (label[tuple(table["1"].T)] == 2).all()

    before = times(output)
    first = output / dataset.cases[0].name
    for path in first.iterdir():
        path.unlink()
    first.rmdir()
    (output / f".{first.name}.partial").mkdir()  # as a killed run leaves it
    preprocess_dataset(dataset, plans, "3d_fullres", output, processes=1)
    after = times(output)
    assert after.keys() == before.keys()
    assert {path for path in after if after[path] != before[path]} == set(first.iterdir())
    assert not list(output.glob(".*"))


def test_bad_cases_are_named_and_good_ones_kept(phantoms, tmp_path):
    dataset, plans = phantoms
    output = tmp_path / "cases"
    nibabel.Nifti1Image(np.full((14, 12, 11), np.nan, np.float32), np.eye(4)).to_filename(
        dataset.cases[1].images[0]
    )
    truncated = dataset.cases[3].label
    truncated.write_bytes(truncated.read_bytes()[:100])
    dataset = dataclasses.replace(
        dataset, cases=(*dataset.cases, Case("unlabelled", dataset.cases[0].images, None))
    )
    with pytest.raises(ValueError, match=r"3 of 7 .* bad; .*:\nphantom_1: .*\nphantom_3: .*\nunlabelled: "):
        preprocess_dataset(dataset, plans, "3d_fullres", output, processes=1)
    assert {p.name for p in output.iterdir() if p.is_dir()} == {f"phantom_{n}" for n in (0, 2, 4, 5)}


def test_output_of_other_plans_is_refused(phantoms, tmp_path):
    dataset, plans = phantoms
    output = tmp_path / "cases"
    few = dataclasses.replace(dataset, cases=dataset.cases[:1])
    preprocess_dataset(few, plans, "3d_fullres", output, processes=1)
    configuration = plans.configurations["3d_fullres"]
    for change in ({"spacing": (2.0, 1.0, 1.0)}, {"normalization_schemes": ("NoNormalization",)}):
        changed = dataclasses.replace(configuration, **change)
        other = dataclasses.replace(plans, configurations={"3d_fullres": changed})
        with pytest.raises(ValueError, match=f"{next(iter(change))} of .*configuration.json must be"):
            preprocess_dataset(few, other, "3d_fullres", output, processes=1)
    # The patch size does not change what is written.
    larger = dataclasses.replace(configuration, patch_size=(48, 64, 48))
    same = dataclasses.replace(plans, configurations={"3d_fullres": larger})
    preprocess_dataset(few, same, "3d_fullres", output, processes=1)


def test_workers_do_not_import_jax():
    program = "import sys, jaxmamba3d.data.preprocessed; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
