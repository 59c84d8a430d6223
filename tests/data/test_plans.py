"""Plans: nnU-Net's and the authors' files, both layouts; and planning from recorded fingerprints."""

import dataclasses
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from golden_data import GOLDEN
from nnunet_golden import CHANNELS, recorded
from real_data import AUTHORS
from small_datasets import change_json

from jaxmamba3d.data.cases import Case, Dataset
from jaxmamba3d.data.fingerprint import Fingerprint, compute_fingerprint, load_fingerprint, save_fingerprint
from jaxmamba3d.data.planning import REFERENCE_FEATURE_MAP_VOXELS, plan_dataset
from jaxmamba3d.data.plans import load_plans, save_plans
from jaxmamba3d.data.topology import feature_map_voxels, fit_topology
from jaxmamba3d.labels import Labels

DATASETS = ("hippo", "ct", "ctiso", "mrmask")


def dataset_of(name: str, cases: tuple[Case, ...]) -> Dataset:
    """The recorded dataset with its own channels and labels."""
    folder = recorded(f"{name}/dataset.json").parent
    content = json.loads((folder / "dataset.json").read_text())
    channels = content.get("channel_names", content.get("modality"))
    return Dataset(name, folder, tuple(channels.values()), Labels.from_json(content), cases)


@pytest.mark.parametrize("name", DATASETS)
def test_plans_are_the_recorded_ones(name):
    fingerprint = load_fingerprint(recorded(f"{name}/dataset_fingerprint.json"))
    cases = tuple(Case(str(n), ()) for n in range(len(fingerprint.spacings)))
    expected = load_plans(recorded(f"{name}/nnUNetPlans.json"))
    found = plan_dataset(dataset_of(name, cases), fingerprint=fingerprint)
    assert set(found.configurations) == {key for key in expected.configurations if "cascade" not in key}
    for key, configuration in found.configurations.items():
        assert configuration == expected.configurations[key], key
    for field in dataclasses.fields(found):
        if field.name not in ("dataset_name", "configurations"):
            assert getattr(found, field.name) == getattr(expected, field.name), field.name


@pytest.mark.parametrize(
    "name", ["ctiso", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ct", "mrmask"))]
)
def test_fingerprints_are_the_recorded_ones(name, tmp_path, nnunets_intensity_samples, monkeypatch):
    monkeypatch.setattr("jaxmamba3d.data.fingerprint.INTENSITY_SAMPLES", nnunets_intensity_samples)
    raw = recorded(f"{name}/raw")
    cases = tuple(
        Case(
            path.name.removesuffix("_label.nii.gz"),
            tuple(
                path.with_name(path.name.replace("label", f"{channel:04d}"))
                for channel in range(CHANNELS[name])
            ),
            path,
        )
        for path in sorted(raw.glob("*_label.nii.gz"))
    )
    found = compute_fingerprint(dataset_of(name, cases), processes=1)
    expected = load_fingerprint(recorded(f"{name}/dataset_fingerprint.json"))
    assert found.spacings == expected.spacings
    assert found.shapes_after_crop == expected.shapes_after_crop
    assert found.median_relative_size_after_cropping == expected.median_relative_size_after_cropping
    for channel, statistics in expected.foreground_intensity_properties_per_channel.items():
        for key, value in statistics.items():
            # Equal where numpy sums as it did when this was recorded; last bits follow the processor.
            ours = found.foreground_intensity_properties_per_channel[channel][key]
            assert ours == pytest.approx(value, rel=1e-5), (channel, key)
    save_fingerprint(found, tmp_path / "fingerprint.json")
    assert load_fingerprint(tmp_path / "fingerprint.json") == found


@pytest.mark.parametrize("folder", sorted(AUTHORS.glob("Dataset*")), ids=lambda p: p.name)
def test_the_authors_plans(folder, tmp_path):
    plans = load_plans(folder / "nnUNetPlans.json")
    full = json.loads((GOLDEN / "networks" / "full_configurations.json").read_text())[folder.name]
    found = plans.configurations["3d_fullres"]
    assert found.features == tuple(full["features"])
    assert found.strides == tuple(map(tuple, full["strides"]))
    assert found.kernel_sizes == tuple(map(tuple, full["kernel_sizes"]))
    assert found.blocks_per_stage == tuple(full["blocks"])
    assert found.decoder_blocks_per_stage == tuple(full["decoder_blocks"])
    assert len(found.normalization_schemes) == full["input_channels"]
    assert np.argsort(plans.transpose_forward).tolist() == list(plans.transpose_backward)
    save_plans(plans, tmp_path / "nnUNetPlans.json")
    assert load_plans(tmp_path / "nnUNetPlans.json") == plans


class TestBadFiles:
    @pytest.fixture
    def path(self, tmp_path):
        path = tmp_path / "nnUNetPlans.json"
        path.write_text(recorded("hippo/nnUNetPlans.json").read_text())
        return path

    def test_no_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="json: no such file; it should hold nnU-Net's plans"):
            load_plans(tmp_path / "plans.json")

    @pytest.mark.parametrize(
        ("text", "message"), [("{", "as JSON, got text that is not"), ("[]", "plans, got a JSON list")]
    )
    def test_no_json_object(self, path, text, message):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_plans(path)

    def test_what_is_missing_is_named(self, path):
        change_json(path, transpose_forward=None)
        with pytest.raises(ValueError, match="got a file without 'transpose_forward'"):
            load_plans(path)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("resampling_fn_data", "resample_torch_fornnunet"),
            (
                "resampling_fn_seg_kwargs",
                {"is_seg": True, "order": 0, "order_z": 0, "force_separate_z": None},
            ),
        ],
    )
    def test_another_resampling_is_refused(self, path, key, value):
        content = json.loads(path.read_text())
        content["configurations"]["3d_fullres"][key] = value
        path.write_text(json.dumps(content))
        message = rf"{key} must be nnU-Net's default .*, as in plans by `jaxmamba3d plan`, got "
        with pytest.raises(ValueError, match=message):
            load_plans(path)

    def test_another_reader_is_refused(self, path):
        change_json(path, image_reader_writer="NibabelIOWithReorient")
        with pytest.raises(
            ValueError, match="image_reader_writer must be one of SimpleITKIO, NibabelIO, got"
        ):
            load_plans(path)

    def test_inheritance_in_a_circle(self, path):
        circle = {"a": {"inherits_from": "b"}, "b": {"inherits_from": "a"}}
        change_json(path, configurations=circle)
        with pytest.raises(ValueError, match="inherits_from must be without a circle, got a -> b -> a"):
            load_plans(path)


def test_inherited_settings(tmp_path):
    content = json.loads(recorded("hippo/nnUNetPlans.json").read_text())
    content["configurations"]["small"] = {"inherits_from": "3d_fullres", "batch_size": 3}
    path = tmp_path / "plans.json"
    path.write_text(json.dumps(content))
    configurations = load_plans(path).configurations
    assert configurations["small"] == dataclasses.replace(configurations["3d_fullres"], batch_size=3)


def test_cascades_are_left_out():
    plans = load_plans(AUTHORS / "Dataset090_SynapseAbdomen" / "nnUNetPlans.json")
    assert set(plans.configurations) == {"3d_lowres", "3d_fullres"}


def test_more_memory_gives_larger_patches_or_batches():
    fingerprint = load_fingerprint(recorded("ct/dataset_fingerprint.json"))
    cases = tuple(Case(str(n), ()) for n in range(50))
    sizes = []
    for memory_gb in (2, 8, 32):
        plans = plan_dataset(dataset_of("ct", cases), memory_gb=memory_gb, fingerprint=fingerprint)
        full = plans.configurations["3d_fullres"]
        sizes.append(np.prod(full.patch_size) * full.batch_size)
    assert sizes[0] < sizes[1] <= sizes[2]


def planned(shape, *spacings, channels=("CT",), kept=1.0):
    """From cases of such spacings, or from three alike."""
    labels = Labels({"background": (0,), "a": (1,), "b": (2,)})
    spacings = spacings * 3 if len(spacings) == 1 else spacings
    cases = tuple(Case(str(n), ()) for n in range(len(spacings)))
    fingerprint = Fingerprint(spacings, (shape,) * len(spacings), {}, kept)
    return plan_dataset(Dataset("x", Path(), channels, labels, cases), fingerprint=fingerprint).configurations


def test_a_low_resolution_is_added_where_a_patch_covers_little():
    """Numbers of nnU-Net 2.8.1's ExperimentPlanner for the same fingerprint."""
    found = planned((150, 512, 512), (3.0, 0.76, 0.76))
    low, full = found["3d_lowres"], found["3d_fullres"]
    assert (full.batch_dice, low.batch_dice) == (True, False)
    assert full.patch_size == (56, 192, 192)
    assert low.spacing == (3.0, 1.5449235209099075, 1.5449235209099075)
    assert low.patch_size == (96, 160, 160)
    assert low.median_image_size == (150, 252, 252)
    assert low.batch_size == 2
    assert set(planned((64, 64, 64), (1.0, 1.0, 1.0))) == {"3d_fullres"}
    # Nor where a quarter is covered at less than twice the voxel.
    assert set(planned((244, 244, 244), (1.0, 1.0, 1.0))) == {"3d_fullres"}
    assert set(planned((250, 250, 250), (1.0, 1.0, 1.0))) == {"3d_lowres", "3d_fullres"}


@pytest.mark.parametrize(("thin", "expected"), [(2.0, 2.0), (0.5, 1.0 + 1e-5), (1.0, 1.0)])
def test_short_stacks_of_thick_slices_are_planned_for_thin_ones(thin, expected):
    """The tenth percentile of what is across slices, here that of the second of eleven, or what is within."""
    spacings = [(thin, 1.0, 1.0)] * 2 + [(5.0, 1.0, 1.0)] * 9
    assert planned((20, 256, 256), *spacings)["3d_fullres"].spacing == (expected, 1.0, 1.0)


@pytest.mark.parametrize(("length", "strides"), [(8, 1), (11, 1), (12, 2), (24, 4)])
def test_an_axis_that_is_halved_alone_is_so_from_12_voxels_on(length, strides):
    found = fit_topology((1.0, 1.0, 1.0), (length, 4, 4))
    assert np.prod(found.strides, axis=0).tolist() == [strides, 1, 1]


def test_a_short_stack_of_slices_that_are_hardly_thicker_is_planned_as_it_is():
    spacings = [(0.5, 1.0, 1.0)] * 2 + [(3.0, 1.0, 1.0)] * 9
    assert planned((20, 256, 256), *spacings)["3d_fullres"].spacing == (3.0, 1.0, 1.0)


@pytest.mark.parametrize(("kept", "masked"), [(0.74, True), (0.75, False)])
def test_z_scores_are_of_the_body_where_the_crop_leaves_less_than_three_quarters(kept, masked):
    (full,) = planned((64, 64, 64), (1.0, 1.0, 1.0), channels=("T1",), kept=kept).values()
    assert full.use_mask_for_norm == (masked,)


def test_regions_and_ignored_voxels_count_as_classes_of_the_planned_net():
    """So that its feature maps are those that nnU-Net counts."""
    labels = Labels({"background": (0,), "whole": (1, 2), "core": (2,), "ignore": (3,)}, (1, 2))
    cases = tuple(Case(str(n), ()) for n in range(3))
    fingerprint = Fingerprint(((1.0,) * 3,) * 3, ((64,) * 3,) * 3, {}, 1.0)
    voxels = feature_map_voxels(fit_topology((1.0,) * 3, (64,) * 3), len(labels.entries))
    for more, patch in ((1, (64, 64, 64)), (-1, (56, 64, 64))):
        plans = plan_dataset(
            Dataset("x", Path(), ("CT",), labels, cases),
            fingerprint=fingerprint,
            memory_gb=8 * (voxels + more) / REFERENCE_FEATURE_MAP_VOXELS,
        )
        assert sorted(plans.configurations["3d_fullres"].patch_size) == sorted(patch)


def test_axes_twice_as_coarse_are_left_until_the_others_caught_up():
    found = fit_topology((2.0, 1.0, 1.0), (32, 32, 32))
    assert found.strides[:3] == ((1, 1, 1), (1, 2, 2), (2, 2, 2))
    assert found.kernel_sizes[:2] == ((1, 3, 3), (3, 3, 3))


def test_an_axis_that_was_convolved_once_is_so_ever_after():
    """Though the first axis, too short to be halved, becomes finer than the others."""
    found = fit_topology((1.0, 1.0, 1.0), (4, 64, 64))
    assert set(found.kernel_sizes) == {(3, 3, 3)}


def test_residual_encoders_count_blocks(tmp_path):
    save_plans(load_plans(AUTHORS / "Dataset027_ACDC" / "nnUNetPlans.json"), tmp_path / "plans.json")
    content = json.loads((tmp_path / "plans.json").read_text())
    net = content["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    net["n_blocks_per_stage"] = [1, 3, 4, 6, 6, 6]
    del net["n_conv_per_stage"]
    (tmp_path / "plans.json").write_text(json.dumps(content))
    found = load_plans(tmp_path / "plans.json").configurations["3d_fullres"]
    assert found.blocks_per_stage == (1, 3, 4, 6, 6, 6)


def test_channels_are_normalised_by_their_names_and_only_z_scores_inside_the_body():
    (full,) = planned(
        (64, 64, 64),
        (1.0, 1.0, 1.0),
        channels=("rescale_to_0_1", "rgb_to_0_1", "CT", "T1", "noNorm"),
        kept=0.7,
    ).values()
    assert full.normalization_schemes == (
        "RescaleTo01Normalization",
        "RGBTo01Normalization",
        "CTNormalization",
        "ZScoreNormalization",
        "NoNormalization",
    )
    assert full.use_mask_for_norm == (False, False, False, True, False)


def test_fingerprint_of_cropped_cases_of_two_channels(tmp_path):
    label = np.zeros((10, 8, 6), np.uint8)
    label[4:6, 3:5, 2:4] = 1
    images = []
    for channel, value in enumerate((5, 50)):
        image = np.zeros(label.shape, np.float32)
        image[2:9, 2:6, 1:5] = value
        image[label > 0] = 2 * value
        images.append(tmp_path / f"c_{channel:04d}.nii.gz")
        nibabel.Nifti1Image(image, np.eye(4)).to_filename(images[-1])
    nibabel.Nifti1Image(label, np.eye(4)).to_filename(tmp_path / "l.nii.gz")
    case = Case("c", tuple(images), tmp_path / "l.nii.gz")
    found = compute_fingerprint(
        Dataset("x", tmp_path, ("MRI", "MRI"), Labels({"background": (0,), "a": (1,)}), (case,)), processes=1
    )
    assert found.shapes_after_crop == ((4, 4, 7),)
    assert found.median_relative_size_after_cropping == pytest.approx(4 * 4 * 7 / 480)
    means = [found.foreground_intensity_properties_per_channel[c]["mean"] for c in "01"]
    assert means == [10, 100]


def test_fingerprint_of_several_cases(tmp_path, monkeypatch):
    """Intensities of all together, their deviation a population's; the median share that a crop leaves."""
    monkeypatch.setattr("jaxmamba3d.data.fingerprint.INTENSITY_SAMPLES", 3)
    cases = []
    for number, (value, width) in enumerate(((10, 8), (20, 8), (60, 4))):
        image, label = np.zeros((8, 8, 8), np.float32), np.zeros((8, 8, 8), np.uint8)
        image[:width], label[0] = 1, 1
        image[label > 0] = value
        names = [tmp_path / f"{part}{number}.nii.gz" for part in ("image", "label")]
        for name, array in zip(names, (image, label), strict=True):
            nibabel.Nifti1Image(array, np.eye(4)).to_filename(name)
        cases.append(Case(str(number), (names[0],), names[1]))
    labels = Labels({"background": (0,), "a": (1,)})
    found = compute_fingerprint(Dataset("x", tmp_path, ("MRI",), labels, tuple(cases)), processes=1)
    assert found.median_relative_size_after_cropping == 1
    intensities = found.foreground_intensity_properties_per_channel["0"]
    assert (intensities["mean"], intensities["median"]) == (30, 20)
    assert intensities["std"] == pytest.approx(np.sqrt((20**2 + 10**2 + 30**2) / 3), rel=1e-6)


def test_a_median_between_two_sizes_is_rounded_up():
    labels = Labels({"background": (0,), "a": (1,)})
    cases = tuple(Case(str(n), ()) for n in range(2))
    fingerprint = Fingerprint(((1.0,) * 3,) * 2, ((64,) * 3, (65, 64, 64)), {}, 1.0)
    plans = plan_dataset(Dataset("x", Path(), ("CT",), labels, cases), fingerprint=fingerprint)
    assert plans.configurations["3d_fullres"].median_image_size == (64.5, 64, 64)
    assert plans.configurations["3d_fullres"].patch_size == (80, 64, 64)
