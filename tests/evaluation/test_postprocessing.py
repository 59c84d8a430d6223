"""The choice of post-processing against nnU-Net's rule, written out on whole volumes one case at a time."""

import json
import logging

import nibabel
import numpy as np
import pytest
from scipy.ndimage import label

from jaxmamba3d.evaluation import Pair, apply_postprocessing, choose_postprocessing
from jaxmamba3d.evaluation.postprocessing import Postprocessing
from jaxmamba3d.labels import Labels

SHAPE = (12, 14, 10)
PLAIN = Labels({"background": (0,), "a": (1,), "b": (2,), "c": (3,)})
REGIONS = Labels({"background": (0,), "whole": (1, 2, 3), "core": (2, 3), "rim": (3,)}, (1, 2, 3))
# Seed and stray boxes -> the steps without regions: every way that the rule can take.
EXAMPLES = {
    (0, ()): [],
    (7, (3, 3)): [(3,)],
    (6, (1, 3)): [(1,), (3,)],
    (4, (2, 2)): [(1, 2, 3)],
    (10, (1, 2, 3)): [(1, 2, 3), (2,), (3,)],
}
IGNORING = Labels({"background": (0,), "a": (1,), "b": (2,), "c": (3,), "ignore": (4,)})


def their_removal(segmentation, labels_or_regions):
    """nnU-Net's remove_all_but_largest_component_from_segmentation."""
    mask = np.isin(segmentation, labels_or_regions)
    components, count = label(mask, np.ones((3, 3, 3)))
    sizes = [np.sum(components == number) for number in range(1, count + 1)]
    kept = [number for number, size in enumerate(sizes, 1) if size == max(sizes)]
    result = segmentation.copy()
    result[mask & ~np.isin(components, kept)] = 0
    return result


def their_dice(prediction, reference, values, ignore):
    use = np.ones(SHAPE, bool) if ignore is None else reference != ignore
    ours, theirs = np.isin(prediction, values), np.isin(reference, values)
    tp, fp, fn = (np.sum(m & use) for m in (ours & theirs, ours & ~theirs, ~ours & theirs))
    return 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else np.nan


def their_choice(predictions, references, labels):
    """nnU-Net's determine_postprocessing: the steps, Dice before and after, and the volumes."""

    def means(volumes):
        return [
            np.nanmean([their_dice(p, r, s, labels.ignore) for p, r in zip(volumes, references, strict=True)])
            for s in labels.structures.values()
        ]

    steps, source = [], predictions
    foreground = tuple(value for value in labels.values if value)
    output = [their_removal(volume, foreground) for volume in source]
    before, after = means(source), means(output)
    if np.mean(after) > np.mean(before) and not any(a < b for a, b in zip(after, before, strict=True)):
        steps, source = [foreground], output
    for number, values in enumerate(labels.structures.values()):
        output = [their_removal(volume, values) for volume in source]
        if means(output)[number] > means(source)[number]:
            steps, source = [*steps, values], output
    return steps, means(predictions), means(source), source


def volumes(seed, cases, stray):
    """References of nested boxes, and predictions of the same with stray boxes beside them."""
    rng = np.random.default_rng(seed)
    references, predictions = [], []
    for _ in range(cases):
        reference = np.zeros(SHAPE, np.uint8)
        x, y, z = rng.integers(0, (5, 6, 3))
        reference[x : x + 6, y : y + 7, z : z + 6] = 1
        reference[x + 1 : x + 5, y + 1 : y + 5, z + 1 : z + 5] = 2
        reference[x + 2 : x + 4, y + 2 : y + 4, z + 2 : z + 4] = 3
        if rng.random() < 0.5:  # what is right may have two components
            reference[SHAPE[0] - 1, SHAPE[1] - 3 :, :2] = rng.integers(1, 4)
        prediction = reference.copy()
        for value in stray:
            start = rng.integers(0, np.array(SHAPE) - 3)
            prediction[tuple(slice(a, a + rng.integers(1, 4)) for a in start)] = value
        references.append(reference)
        predictions.append(prediction)
    return predictions, references


def write(folder, predictions, references):
    pairs = []
    for number, volumes in enumerate(zip(predictions, references, strict=True)):
        paths = [folder / f"{kind}_{number}.nii.gz" for kind in ("prediction", "reference")]
        for path, volume in zip(paths, volumes, strict=True):
            nibabel.save(nibabel.Nifti1Image(volume.T, np.eye(4)), path)
        pairs.append(Pair(f"case_{number}", *paths))
    return pairs


def chosen(folder, predictions, references, labels):
    pairs = write(folder, predictions, references)
    return choose_postprocessing(pairs, labels, threads=2, progress=False)


@pytest.mark.parametrize("labels", [PLAIN, REGIONS, IGNORING], ids=["classes", "regions", "ignore"])
@pytest.mark.parametrize(("seed", "stray"), EXAMPLES)
def test_the_choice_is_nnunets(tmp_path, labels, seed, stray):
    predictions, references = volumes(seed, 4, stray)
    if labels.ignore:
        for reference in references:
            reference[:, :, 7:] = labels.ignore
    steps, before, after, _ = their_choice(predictions, references, labels)
    decision = chosen(tmp_path, predictions, references, labels)
    assert list(decision.steps) == steps
    names = list(labels.structures)
    assert [trial.structure for trial in decision.trials] == ["foreground", *names]
    assert decision.trials[0].dice_before == pytest.approx(np.mean(before), rel=1e-12)
    last = decision.trials[-1]
    found = last.dice_after if last.kept else last.dice_before
    assert found == pytest.approx(after[-1], rel=1e-12)


@pytest.mark.parametrize(("seed", "stray"), EXAMPLES)
def test_healthy_cases_that_are_seen_as_such_change_nothing(tmp_path, seed, stray):
    """No foreground in prediction and reference, of all cases or of some."""
    predictions, references = volumes(seed, 4, stray)
    healthy = np.zeros(SHAPE, np.uint8)
    decision = chosen(tmp_path, [healthy, *predictions], [healthy, *references], PLAIN)
    steps, before, _, _ = their_choice([healthy, *predictions], [healthy, *references], PLAIN)
    assert list(decision.steps) == steps == EXAMPLES[seed, stray]
    assert decision.trials[0].dice_before == pytest.approx(np.mean(before), rel=1e-12)
    assert chosen(tmp_path, [healthy], [healthy], PLAIN).steps == ()


@pytest.mark.parametrize(("seed", "stray"), EXAMPLES)
def test_every_way_is_taken(tmp_path, seed, stray):
    decision = chosen(tmp_path, *volumes(seed, 4, stray), PLAIN)
    assert list(decision.steps) == EXAMPLES[seed, stray]


def test_applying_gives_what_was_chosen(tmp_path):
    predictions, references = volumes(10, 4, (1, 2, 3))
    steps, *_, processed = their_choice(predictions, references, PLAIN)
    decision = chosen(tmp_path, predictions, references, PLAIN)
    assert steps
    for prediction, expected in zip(predictions, processed, strict=True):
        found = apply_postprocessing(prediction, decision)
        assert found.dtype == prediction.dtype
        np.testing.assert_array_equal(found, expected)


def test_a_class_that_falls_forbids_the_foreground_step(tmp_path):
    reference = np.zeros(SHAPE, np.uint8)
    reference[:4, :4, :4] = 1
    reference[8:10, 8:10, 8:] = 2  # lies apart, and would be lost
    prediction = reference.copy()
    prediction[6, :6, :6] = 1
    labels = Labels({"background": (0,), "a": (1,), "b": (2,)})
    decision = chosen(tmp_path, [prediction], [reference], labels)
    assert decision.steps == ((1,),)
    assert [trial.kept for trial in decision.trials] == [False, True, False]
    assert [trial.removed_voxels for trial in decision.trials] == [36 + 8, 36, 0]
    assert decision.trials[1].dice_before == pytest.approx(2 * 64 / (64 + 100))
    assert decision.trials[1].dice_after == 1


def test_one_class_has_one_trial(tmp_path):
    reference = np.zeros(SHAPE, np.uint8)
    reference[:4] = 1
    prediction = reference.copy()
    prediction[6, 0, 0] = 1
    decision = chosen(tmp_path, [prediction], [reference], Labels({"background": (0,), "a": (1,)}))
    assert [trial.structure for trial in decision.trials] == ["foreground"]
    assert decision.steps == ((1,),)


def test_a_class_that_never_occurs(tmp_path):
    """Its Dice is NaN, and with it the foreground's: as in nnU-Net, only single classes are then treated."""
    reference = np.zeros(SHAPE, np.uint8)
    reference[:4] = 1
    prediction = reference.copy()
    prediction[6, 0, 0] = 1
    decision = chosen(tmp_path, [prediction], [reference], PLAIN)
    assert decision.steps == ((1,),)
    assert np.isnan(decision.trials[0].dice_before)
    content = json.loads(json.dumps(decision.to_json(), allow_nan=False))
    again = Postprocessing.from_json(content)
    assert np.isnan(again.trials[0].dice_before)
    assert (again.steps, again.cases, again.trials[1]) == (decision.steps, 1, decision.trials[1])


def test_the_log_says_what_is_removed(tmp_path, caplog):
    predictions, references = volumes(10, 4, (1, 2, 3))
    with caplog.at_level(logging.INFO):
        decision = chosen(tmp_path, predictions, references, PLAIN)
        chosen(tmp_path, references[:1], references[:1], PLAIN)
    trial = decision.trials[-1]
    assert trial.kept
    change = f"of {trial.structure}: Dice {trial.dice_before:.4f} -> {trial.dice_after:.4f} on 4 cases"
    assert f"{change}, {trial.removed_voxels} voxels less" in caplog.text
    assert "changes nothing: no removal raises Dice on 1 case" in caplog.text


def test_errors(tmp_path):
    with pytest.raises(ValueError, match="pairs must be at least one case, got none"):
        choose_postprocessing([], PLAIN)
    predictions, references = volumes(0, 1, ())
    predictions[0][0, 0, 0] = 7
    with pytest.raises(
        ValueError, match=r"prediction_0.nii.gz must be of the labels \[0, 1, 2, 3\], got \[7\]"
    ):
        chosen(tmp_path, predictions, references, PLAIN)
    with pytest.raises(ValueError, match="1 of 1 cases cannot be scored"):
        chosen(tmp_path, [predictions[0][1:]], references, PLAIN)
    with pytest.raises(ValueError, match="a post-processing must be trials and cases"):
        Postprocessing.from_json({"steps": []})
