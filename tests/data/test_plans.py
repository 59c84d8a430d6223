"""Plans: nnU-Net's and the authors' files, both layouts; and planning from recorded fingerprints."""

import dataclasses
import json

import numpy as np
import pytest
from golden_data import GOLDEN
from nnunet_golden import CHANNELS, recorded
from real_data import AUTHORS
from small_datasets import change_json

from jaxmamba3d.data.cases import Case, Dataset
from jaxmamba3d.data.fingerprint import compute_fingerprint, load_fingerprint, save_fingerprint
from jaxmamba3d.data.planning import plan_dataset
from jaxmamba3d.data.plans import load_plans, save_plans
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
        ("text", "message"), [("{", "as JSON, got text that is not"), ("[]", "the file must be an object")]
    )
    def test_no_json_object(self, path, text, message):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_plans(path)

    def test_what_is_missing_is_named(self, path):
        change_json(path, transpose_forward=None)
        with pytest.raises(ValueError, match="got a file without 'transpose_forward'"):
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


def test_more_memory_gives_larger_patches_or_batches():
    fingerprint = load_fingerprint(recorded("ct/dataset_fingerprint.json"))
    cases = tuple(Case(str(n), ()) for n in range(50))
    sizes = []
    for memory_gb in (2, 8, 32):
        plans = plan_dataset(dataset_of("ct", cases), memory_gb=memory_gb, fingerprint=fingerprint)
        full = plans.configurations["3d_fullres"]
        sizes.append(np.prod(full.patch_size) * full.batch_size)
    assert sizes[0] < sizes[1] <= sizes[2]
