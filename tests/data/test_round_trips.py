"""Random datasets: planned, preprocessed and exported, every label lies where it was in its image."""

import dataclasses
import json
import tempfile
from pathlib import Path

import nibabel
import numpy as np
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from jaxmamba3d.data import (
    export_segmentation,
    plan_dataset,
    preprocess_case,
    read_dataset,
    read_label,
    write_segmentation,
)

CASES = 3
RESAMPLED_DICE = 0.75


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a random dataset is like; `stretches` are its cases' spacings as shares of `spacing` (mm)."""

    seed: int
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    stretches: tuple[float, ...]
    rotated: bool
    sform_code: int
    dtype: type
    scaled: bool
    channels: int
    decathlon: bool
    labels: int
    ignore: bool


SPECS = st.builds(
    Spec,
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(*[st.integers(22, 28)] * 3),
    spacing=st.tuples(*[st.floats(0.4, 4)] * 3),
    stretches=st.sampled_from([(1.0,) * CASES, (1.0, 0.8, 1.25)]),
    rotated=st.booleans(),
    sform_code=st.sampled_from([0, 1, 2]),
    dtype=st.sampled_from([np.int16, np.uint8, np.float32]),
    scaled=st.booleans(),
    channels=st.integers(1, 2),
    decathlon=st.booleans(),
    labels=st.integers(1, 3),
    ignore=st.booleans(),
)


def write_dataset(folder: Path, spec: Spec) -> Path:
    rng = np.random.default_rng(spec.seed)
    values = spec.labels + spec.ignore
    names = ["background", *(f"organ {n}" for n in range(1, spec.labels + 1)), *["ignore"] * spec.ignore]
    entries = []
    for number, stretch in enumerate(spec.stretches):
        label = np.zeros(spec.shape, np.uint8)
        for quarter, value in enumerate(rng.permutation(values) + 1):
            # Apart from each other: of a label that others nearly cover, resampling may leave nothing.
            low = np.array([1, spec.shape[1] // 2 * (quarter // 2), spec.shape[2] // 2 * (quarter % 2)])
            size = rng.integers(8, 10, 3)
            start = low + rng.integers(0, 11 - size)
            label[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = value
        image = rng.integers(40, 60, (*spec.shape, spec.channels)) + 40 * label[..., None]
        image[:1] = 0  # air, to be cropped off
        affine = np.eye(4)
        axes = np.linalg.qr(rng.normal(size=(3, 3)))[0] if spec.rotated else np.eye(3)[rng.permutation(3)]
        affine[:3, :3] = axes * np.multiply(spec.spacing, stretch)
        affine[:3, 3] = rng.normal(0, 50, 3)
        name = f"case_{number}"
        files = (
            [f"{name}.nii.gz"] if spec.decathlon else [f"{name}_{c:04d}.nii.gz" for c in range(spec.channels)]
        )
        parts = [image.squeeze()] if spec.decathlon else np.moveaxis(image, -1, 0)
        for file, part in zip(files, parts, strict=True):
            write_nifti(folder / "imagesTr" / file, part.astype(spec.dtype), affine, spec)
        write_nifti(
            folder / "labelsTr" / f"{name}.nii.gz", label, affine, dataclasses.replace(spec, scaled=False)
        )
        entries.append({"image": f"imagesTr/{files[0]}", "label": f"labelsTr/{name}.nii.gz"})
    description = {
        "channel_names": {str(c): ("CT", "MRI")[c] for c in range(spec.channels)},
        "labels": {name: value for value, name in enumerate(names)},
        "file_ending": ".nii.gz",
        **({"training": entries} if spec.decathlon else {}),
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray, spec: Spec) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array, affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, spec.sform_code)
    image.header.set_xyzt_units("mm")
    if spec.scaled:
        image.header.set_slope_inter(0.37, 0)
    nibabel.save(image, path)


def dice(found: np.ndarray, truth: np.ndarray, value: int) -> float:
    return 2 * np.sum((found == value) & (truth == value)) / (np.sum(found == value) + np.sum(truth == value))


@settings(max_examples=12, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(SPECS)
def test_what_is_exported_lies_where_it_was(spec):
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_dataset(Path(temporary), spec)
        plans = plan_dataset(folder, processes=1)
        for case in read_dataset(folder).cases:
            truth, _ = read_label(case.label)
            done = preprocess_case(case.images, case.label, plans)
            logits = np.eye(truth.max() + 1, dtype=np.float32)[done.label.clip(0)]
            exported = export_segmentation(logits, done.properties, plans)
            if len(set(spec.stretches)) == 1:
                np.testing.assert_array_equal(exported, truth)
            scores = {value: dice(exported, truth, value) for value in np.unique(truth)}
            assert min(scores.values()) >= RESAMPLED_DICE, scores

            path = folder / "exported.nii.gz"
            write_segmentation(path, exported, done.properties["geometry"])
            written, image = nibabel.load(path), nibabel.load(case.images[0])
            np.testing.assert_array_equal(np.asarray(written.dataobj).T, exported)
            np.testing.assert_array_equal(written.affine, image.affine)
            # As a quaternion, to which the axes are turned again.
            np.testing.assert_allclose(written.get_qform(), image.get_qform(), rtol=0, atol=1e-6)
            assert written.header.get_zooms() == image.header.get_zooms()[:3]
            assert written.header.get_xyzt_units() == image.header.get_xyzt_units()
            for code in ("qform_code", "sform_code"):
                assert written.header[code] == image.header[code]
