"""Preprocessed cases are nnU-Net's to the bit; a dataset is processed once, safely, and never mixed up."""

import dataclasses
import json
import os
import shutil
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
from tolerances import assert_close, rounding

from jaxmamba3d.data import preprocessed
from jaxmamba3d.data.cases import Case
from jaxmamba3d.data.dataset import read_dataset
from jaxmamba3d.data.export import export_segmentation
from jaxmamba3d.data.inspection import inspect_case
from jaxmamba3d.data.nifti import Volume
from jaxmamba3d.data.patches import foreground_table
from jaxmamba3d.data.planewise import PlaneResampler
from jaxmamba3d.data.plans import load_plans
from jaxmamba3d.data.preprocessed import preprocess_dataset
from jaxmamba3d.data.preprocessing import preprocess_case, preprocess_volume
from jaxmamba3d.data.resampling import resample_image
from jaxmamba3d.labels import Labels

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


def test_each_channel_is_normalised_by_its_own_scheme():
    plans = load_plans(recorded("hippo/nnUNetPlans.json"))
    schemes = ("CTNormalization", "ZScoreNormalization", "CTNormalization", "NoNormalization")
    settings = dataclasses.replace(
        plans.configurations["3d_fullres"],
        normalization_schemes=schemes,
        use_mask_for_norm=(False, True, False, False),
    )
    numbers = {"percentile_00_5": -50.0, "percentile_99_5": 50.0, "std": 10.0}
    plans = dataclasses.replace(
        plans,
        configurations={"3d_fullres": settings},
        intensity_properties={"0": numbers | {"mean": 5.0}, "2": numbers | {"mean": 7.0}},
    )
    array = np.random.default_rng(0).normal(0, 40, (4, 9, 8, 7)).astype(np.float32)
    array[:, 0, :4] = 0
    volume = Volume(array.copy(), settings.spacing, {})
    done = preprocess_volume(volume, None, plans, "3d_fullres", name="image").image
    body = (array != 0).any(axis=0)
    inside = array[1][body].astype(np.float64)
    expected = array.astype(np.float64)
    expected[0], expected[2] = (np.clip(array[0], -50, 50) - 5) / 10, (np.clip(array[2], -50, 50) - 7) / 10
    expected[1][body] = (inside - inside.mean()) / inside.std()
    order = plans.transpose_forward
    for channel, scheme in enumerate(schemes):
        assert_close(
            done[..., channel], expected[channel].transpose(order), rounding("float32", body.sum()), scheme
        )


def volume_of(plans, spacing, shape):
    """Noise of a spacing and shape in the order of the plans' axes."""
    backward = plans.transpose_backward
    array = np.random.default_rng(0).normal(size=(1, *(shape[axis] for axis in backward)))
    return Volume(array.astype(np.float32), tuple(spacing[axis] for axis in backward), {})


def test_slices_are_those_of_the_spacing_that_is_left(monkeypatch):
    """On the way back too, where that is the plans'."""
    plans = load_plans(recorded("hippo/nnUNetPlans.json"))
    settings = dataclasses.replace(plans.configurations["3d_fullres"], spacing=(4.0, 1.0, 1.0))
    plans = dataclasses.replace(plans, configurations={"3d_fullres": settings})
    volume = volume_of(plans, (1.0, 1.0, 4.0), (24, 9, 4))
    normalised = volume.array[0].transpose(plans.transpose_forward)
    normalised = (normalised - normalised.mean()) / normalised.std()
    done = preprocess_volume(volume, None, plans, "3d_fullres", name="image")
    assert done.image.shape == (6, 9, 16, 1)
    expected = resample_image(normalised, (6, 9, 16), 2)
    np.testing.assert_allclose(done.image[..., 0], expected, atol=1e-5)
    logits = np.random.default_rng(1).normal(size=(6, 9, 16, 3)).astype(np.float32)
    back = PlaneResampler((6, 9, 16), (24, 9, 4), 0)
    planes = np.stack([plane for given in logits for plane in back.add(given)])
    segmentation = export_segmentation(logits, done.properties, plans)
    np.testing.assert_array_equal(segmentation.transpose(plans.transpose_forward), planes.argmax(-1))


def test_an_image_of_less_than_half_a_voxel_is_refused():
    plans = load_plans(recorded("hippo/nnUNetPlans.json"))
    volume = volume_of(plans, (0.1, 1.0, 1.0), (4, 9, 8))
    wanted = (
        r"image must be at least 1 voxel large at the plans' spacing of .* mm, got \(0, 9, 8\) from a spac"
    )
    with pytest.raises(ValueError, match=wanted):
        preprocess_volume(volume, None, plans, "3d_fullres", name="image")


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


def test_what_a_killed_process_left_is_in_nobody_s_way(phantoms, tmp_path):
    """It may have been killed before it had removed the former version of a case, or written a new one."""
    dataset, plans = phantoms
    few = dataclasses.replace(dataset, cases=dataset.cases[:1])
    output = tmp_path / "cases"
    preprocess_dataset(few, plans, "3d_fullres", output, processes=1)
    expected = times(output).keys()
    for state in ("partial", "former"):
        shutil.copytree(output / "phantom_0", output / f".phantom_0.{state}")
    few.cases[0].images[0].touch()
    preprocess_dataset(few, plans, "3d_fullres", output, processes=1)
    assert times(output).keys() == expected
    assert not list(output.glob(".*"))


def test_a_file_that_changes_while_it_is_read_has_changed_the_next_time(phantoms, tmp_path, monkeypatch):
    dataset, plans = phantoms
    few = dataclasses.replace(dataset, cases=dataset.cases[:1])
    read = []

    def and_change(channel_names, labels, case):
        found = inspect_case(channel_names, labels, case)
        os.utime(case.images[0], (len(read), len(read)))
        read.append(case.name)
        return found

    monkeypatch.setattr(preprocessed, "inspect_case", and_change)
    for _ in range(2):
        preprocess_dataset(few, plans, "3d_fullres", tmp_path / "cases", processes=1)
    assert read == ["phantom_0"] * 2


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
    for change in (
        {"spacing": (2.0, 1.0, 1.0)},
        {"normalization_schemes": ("NoNormalization",)},
        {"use_mask_for_norm": (not configuration.use_mask_for_norm[0],)},
    ):
        changed = dataclasses.replace(configuration, **change)
        other = dataclasses.replace(plans, configurations={"3d_fullres": changed})
        with pytest.raises(ValueError, match=f"{next(iter(change))} of .*configuration.json must be"):
            preprocess_dataset(few, other, "3d_fullres", output, processes=1)
    turned = dataclasses.replace(plans, transpose_forward=(2, 1, 0), transpose_backward=(2, 1, 0))
    with pytest.raises(ValueError, match=r"transpose_forward of .*configuration\.json must be \[2, 1, 0\]"):
        preprocess_dataset(few, turned, "3d_fullres", output, processes=1)
    labels = Labels({"background": (0,), "back": (1,), "front": (2,)})
    with pytest.raises(
        ValueError, match=r"labels of .*configuration\.json must be \{'background': 0, 'back'"
    ):
        preprocess_dataset(dataclasses.replace(few, labels=labels), plans, "3d_fullres", output, processes=1)
    # The patch size does not change what is written.
    larger = dataclasses.replace(configuration, patch_size=(48, 64, 48))
    same = dataclasses.replace(plans, configurations={"3d_fullres": larger})
    preprocess_dataset(few, same, "3d_fullres", output, processes=1)


@pytest.mark.parametrize("annotated", [0.0, 0.5])
def test_what_is_not_ignored_is_annotated_outside_the_body_too(phantoms, tmp_path, annotated):
    """Or nothing is, where all is ignored."""
    dataset, plans = phantoms
    masked = dataclasses.replace(plans.configurations["3d_fullres"], use_mask_for_norm=(True,))
    plans = dataclasses.replace(plans, configurations={"3d_fullres": masked})
    labels = Labels(dataset.labels.entries | {"ignore": (3,)})
    (case, *_) = dataset.cases
    image, label = np.ones((14, 12, 10), np.float32), np.full((14, 12, 10), 3, np.uint8)
    image[0, 0, 0], image[1:6, 1:4], label[: int(14 * annotated)] = 2, 0, 0
    for path, array in ((case.images[0], image), (case.label, label)):
        nibabel.Nifti1Image(array, np.eye(4)).to_filename(path)
    few = dataclasses.replace(dataset, cases=(case,), labels=labels)
    preprocess_dataset(few, plans, "3d_fullres", tmp_path / "cases", processes=1)
    folder = tmp_path / "cases" / case.name
    found = np.load(folder / "label.npy")
    with np.load(folder / "foreground.npz") as tables:
        assert tables.files == (["annotated"] if annotated else [])
        values = {int(found[tuple(voxel)]) for name in tables.files for voxel in tables[name]}
    assert values == set(np.unique(found[found != 3])) == ({-1, 0} if annotated else set())


def test_workers_do_not_import_jax():
    program = "import sys, jaxmamba3d.data.preprocessed; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
