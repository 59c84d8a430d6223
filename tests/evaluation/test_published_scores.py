"""The published protocols against the authors' evaluation scripts, written out over medpy's definitions.

Source: LucaLumetti/TamingMambas, evaluation/Dataset090_SynapseAbdomen/eval.py, Dataset027_ACDC/eval.py and
Dataset001_BrainTumour/eval.py.
"""

import nibabel
import numpy as np
import pytest
from scipy.ndimage import binary_erosion, distance_transform_edt, generate_binary_structure

from jaxmamba3d.evaluation import evaluate_folders

SHAPE = (14, 12, 9)
SPACING = (0.7, 1.5, 4.0)
CASES = 4

SYNAPSE = {
    "spleen": 1,
    "right kidney": 2,
    "left kidney": 3,
    "gallbladder": 4,
    "liver": 6,
    "stomach": 7,
    "aorta": 8,
    "pancreas": 11,
}
ACDC = {"RV": 1, "MLV": 2, "LVC": 3}


def synapse_masks(labels):
    return {name: labels == value for name, value in SYNAPSE.items()}


def acdc_masks(labels):
    return {name: labels == value for name, value in ACDC.items()}


def brain_tumour_masks(labels):
    necrosis, edema, enhancing = labels == 2, labels == 1, labels == 3
    return {"ET": enhancing, "TC": necrosis + enhancing, "WT": necrosis + enhancing + edema}


def their_dice(prediction, label):
    if prediction.sum() + label.sum() == 0:
        return 1
    return 2.0 * np.logical_and(prediction, label).sum() / (prediction.sum() + label.sum())


def their_hd95(prediction, label):
    if prediction.sum() > 0 and label.sum() > 0:
        both = medpy_surface_distances(prediction, label), medpy_surface_distances(label, prediction)
        return np.percentile(np.hstack(both), 95)
    return 0


def medpy_surface_distances(result, reference):
    """medpy.metric.binary.__surface_distances with its defaults: no spacing, connectivity 1."""
    footprint = generate_binary_structure(result.ndim, 1)
    result_border = result ^ binary_erosion(result, structure=footprint, iterations=1)
    reference_border = reference ^ binary_erosion(reference, structure=footprint, iterations=1)
    return distance_transform_edt(~reference_border)[result_border]


def volume(seed, values, absent=()):
    """Boxes of the label values, at random places and in random order."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(SHAPE, np.uint8)
    for value in rng.permutation([value for value in values if value not in absent]):
        start = rng.integers(0, np.array(SHAPE) - 4)
        size = rng.integers(3, 8, 3)
        labels[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = value
    return labels


@pytest.mark.parametrize(
    ("protocol", "values", "masks", "sometimes_absent", "its_value"),
    [
        ("synapse8", range(1, 14), synapse_masks, "pancreas", 11),
        ("acdc", range(1, 4), acdc_masks, "LVC", 3),
        ("brats", range(1, 4), brain_tumour_masks, "ET", 3),
    ],
)
def test_means_are_those_of_the_authors_scripts(
    tmp_path, protocol, values, masks, sometimes_absent, its_value
):
    dice, distance = {}, {}
    for case in range(CASES):
        # Nowhere in the first case, missed in the second, made up in the third.
        prediction = volume(case, values, {its_value} if case in (0, 1) else ())
        label = volume(case + 50, values, {its_value} if case in (0, 2) else ())
        for folder, labels in (("predictions", prediction), ("labels", label)):
            (tmp_path / folder).mkdir(exist_ok=True)
            image = nibabel.Nifti1Image(labels, np.diag([*SPACING, 1]))
            nibabel.save(image, tmp_path / folder / f"case_{case}.nii.gz")
        ours, theirs = masks(prediction), masks(label)
        for name in ours:
            dice.setdefault(name, []).append(their_dice(ours[name], theirs[name]))
            distance.setdefault(name, []).append(their_hd95(ours[name], theirs[name]))

    found = evaluate_folders(
        tmp_path / "predictions", tmp_path / "labels", tmp_path / "scores", protocol=protocol, progress=False
    )
    assert list(found.structures) == list(dice)
    for name, statistics in found.structures.items():
        assert statistics["dice"].mean == pytest.approx(np.mean(dice[name]), rel=1e-12)
        assert statistics["hd95_voxels"].mean == pytest.approx(np.mean(distance[name]), rel=1e-12)
        assert statistics["dice"].cases == statistics["hd95_voxels"].cases == CASES
    assert dice[sometimes_absent][:3] == [1, 0, 0]
    assert distance[sometimes_absent][:3] == [0, 0, 0]
    assert min(distance[next(name for name in distance if name != sometimes_absent)]) > 0
    assert found.mean["dice"] == pytest.approx(np.mean([np.mean(v) for v in dice.values()]), rel=1e-12)
    wanted = np.mean([np.mean(values) for values in distance.values()])
    assert found.mean["hd95_voxels"] == pytest.approx(wanted, rel=1e-12)
