"""Models side by side: numbers against the scores they come from, and what is not comparable."""

import csv
import dataclasses
import shutil

import nibabel
import numpy as np
import pytest

from jaxmamba3d.evaluation import (
    Protocol,
    comparable,
    compare_models,
    evaluate_folders,
    find_models,
    read_evaluation,
)

SHAPE = (10, 9, 8)
PROTOCOL = Protocol("two", {"a_core": (1,), "whole": (1, 2)}, hd95_unit="voxels")


def write(path, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(labels.astype(np.uint8), np.diag([1, 2, 3, 1])), path)


def truth(case):
    labels = np.zeros(SHAPE)
    labels[2:7, 2:7, 2:6] = 2
    labels[3:5, 3:5, 3 : 4 + case % 2] = 1
    return labels


def score(root, shift, cases, protocol=PROTOCOL, folder="predictions"):
    """Scores a model that sees everything shifted; returns the folder of the scores."""
    shutil.rmtree(root / "labels", ignore_errors=True)
    for case in cases:
        write(root / "labels" / f"case_{case}.nii.gz", truth(case))
        write(root / folder / f"case_{case}.nii.gz", np.roll(truth(case), shift + case % 3, axis=0))
    scores = root / folder / "scores"
    evaluate_folders(root / folder, root / "labels", scores, protocol=protocol, progress=False)
    return scores


@pytest.fixture
def models(tmp_path):
    """Two models of four cases."""
    return [score(tmp_path / name, shift, range(4)) for name, shift in (("good", 0), ("bad_50%", 1))]


def rows_of(folder):
    with (folder / "comparison.csv").open() as file:
        return list(csv.DictReader(file))


def test_numbers_are_those_of_the_evaluations(models, tmp_path):
    compare_models(find_models(models, ["good", "bad_50%"]), tmp_path / "out")
    for row, folder in zip(rows_of(tmp_path / "out"), models, strict=True):
        found = read_evaluation(folder)
        for structure, statistics in found.structures.items():
            for metric in ("dice", "hd95_mm", "hd95_voxels"):
                assert float(row[f"{structure} {metric} mean"]) == statistics[metric].mean
                assert float(row[f"{structure} {metric} sd"]) == statistics[metric].sd
                assert row[f"{structure} {metric} fold_sd"] == ""
        assert float(row["mean dice mean"]) == found.mean["dice"]
        of_cases = [np.mean([s.dice for s in found.scores if s.case == case]) for case in found.cases]
        assert float(row["mean dice sd"]) == pytest.approx(np.std(of_cases, ddof=1))
    markdown = (tmp_path / "out" / "comparison.md").read_text()
    good = read_evaluation(models[0])
    assert "# Models: protocol two, 4 cases" in markdown
    assert "| model | a_core Dice | a_core HD95 (voxels) | a_core HD95 (mm) | whole Dice |" in markdown
    line = next(line for line in markdown.splitlines() if line.startswith("| good"))
    core = good.structures["a_core"]["dice"]
    assert line.startswith(f"| good | **{core.mean:.4f}** ± {core.sd:.4f} | ")
    assert line.count("**") == 2 * 9
    assert "**" not in next(line for line in markdown.splitlines() if line.startswith("| bad"))
    latex = (tmp_path / "out" / "comparison.tex").read_text()
    assert r"bad\_50\% & " in latex
    assert r"\multicolumn{3}{c}{a\_core}" in latex
    assert rf"\textbf{{{core.mean:.4f}}} $\pm$ {core.sd:.4f}" in latex


def test_one_model_and_equal_models_are_the_best_or_none(models, tmp_path):
    compare_models(find_models(models[:1]), tmp_path / "one")
    assert "**" not in (tmp_path / "one" / "comparison.md").read_text()
    compare_models(find_models(models[:1] * 2, ["x", "y"]), tmp_path / "two")
    assert (tmp_path / "two" / "comparison.md").read_text().count("**") == 2 * 2 * 9


def test_what_reads_the_same_is_equally_good(models, tmp_path):
    first, second = find_models(models[:1] * 2, ["x", "y"])
    (evaluation,) = second.evaluations
    scores = tuple(dataclasses.replace(s, dice=s.dice - 1e-6) for s in evaluation.scores)
    second = dataclasses.replace(second, evaluations=(dataclasses.replace(evaluation, scores=scores),))
    compare_models([first, second], tmp_path / "out")
    assert (tmp_path / "out" / "comparison.md").read_text().count("**") == 2 * 2 * 9


def run_folder(root, shift):
    """Two folds: cases 0 and 1, and cases 2, 3 and 4."""
    for fold, cases in enumerate(((0, 1), (2, 3, 4))):
        score(root / f"fold_{fold}", shift, cases, folder="validation")
        (root / f"fold_{fold}" / "validation" / "scores").rename(root / f"fold_{fold}" / "scores")
    return root


def test_runs_are_compared_over_all_cases_and_over_folds(tmp_path):
    runs = [run_folder(tmp_path / name, shift) for name, shift in (("mine", 0), ("theirs", 1))]
    found = find_models(runs)
    assert [model.name for model in found] == ["mine", "theirs"]
    assert found[0].predictions == tuple(runs[0] / f"fold_{n}" / "validation" for n in (0, 1))
    backup = shutil.copytree(runs[0] / "fold_1", runs[0] / "fold_1_old")
    assert find_models(runs[:1])[0].predictions == found[0].predictions
    shutil.rmtree(backup)
    tenth = shutil.copytree(runs[0] / "fold_1", runs[0] / "fold_10")
    assert find_models(runs[:1])[0].predictions == (*found[0].predictions, tenth / "validation")
    second = shutil.copytree(tenth, runs[0] / "fold_2")
    assert find_models(runs[:1])[0].predictions[2:] == (second / "validation", tenth / "validation")
    shutil.rmtree(second)
    shutil.rmtree(tenth)
    one_fold = runs[0] / "fold_1"
    (one_fold / "summary.json").write_text("{}")  # as a run's fold has one, of more than scores
    (model,) = find_models([one_fold])
    assert (model.name, model.predictions) == ("mine fold_1", (one_fold / "validation",))
    shutil.copytree(one_fold / "validation", one_fold / "validation_postprocessed")
    shutil.copytree(one_fold / "scores", one_fold / "scores_postprocessed")
    (processed,) = find_models([one_fold / "scores_postprocessed"])
    assert (processed.name, processed.predictions) == (
        "mine fold_1",
        (one_fold / "validation_postprocessed",),
    )
    compare_models(found, tmp_path / "out")
    for row, run in zip(rows_of(tmp_path / "out"), runs, strict=True):
        folds = [read_evaluation(run / f"fold_{n}" / "scores") for n in (0, 1)]
        values = [[s.dice for s in fold.scores if s.structure == "whole"] for fold in folds]
        assert (row["cases"], row["folds"]) == ("5", "2")
        together = np.concatenate(values)
        assert float(row["whole dice mean"]) == pytest.approx(np.mean(together))
        assert float(row["whole dice sd"]) == pytest.approx(np.std(together, ddof=1))
        assert float(row["whole dice fold_sd"]) == pytest.approx(np.std([*map(np.mean, values)], ddof=1))
        means = [fold.mean["dice"] for fold in folds]
        assert float(row["mean dice fold_sd"]) == pytest.approx(np.std(means, ddof=1))
    assert "of all folds (± over the means of the folds)" in (tmp_path / "out" / "comparison.md").read_text()


def test_predictions_scored_in_place_are_found(models):
    (model,) = find_models([models[0].parent])
    assert model.predictions == (models[0].parent,)
    assert find_models([models[0]])[0].name == "predictions"


def test_what_cannot_be_compared(models, tmp_path):
    out = tmp_path / "out"
    third = score(tmp_path / "third", 0, range(2, 6))
    message = (
        r"all models must be scored on the same cases \(or compared with --common-cases\), "
        "got x without case_4, case_5"
    )
    with pytest.raises(ValueError, match=message):
        compare_models(find_models([models[0], third], ["x", "y"]), out)
    both = comparable(find_models([models[0], third], ["x", "y"]), common_cases=True)
    rows = compare_models(both, out)
    assert repr(rows["x"]) == repr(rows["y"])
    assert rows_of(out)[0]["cases"] == "2"
    fourth = score(tmp_path / "fourth", 0, range(6, 8))
    with pytest.raises(ValueError, match="the models must be scored on some cases in common, got none"):
        comparable(find_models([models[0], fourth], ["x", "y"]), common_cases=True)
    run = run_folder(tmp_path / "run", 0)
    (left, _) = comparable(find_models([run, third], ["x", "y"]), common_cases=True)
    assert left.predictions == (run / "fold_1" / "validation",)
    assert [evaluation.cases for evaluation in left.evaluations] == [("case_2", "case_3", "case_4")]

    voxels = score(tmp_path / "other", 0, range(4), dataclasses.replace(PROTOCOL, dice_both_absent=1.0))
    message = "under the same protocol, got two of x and two of y, which differ in dice_both_absent; score"
    with pytest.raises(ValueError, match=message):
        compare_models(find_models([models[0], voxels], ["x", "y"]), out)

    elsewhere = score(tmp_path / "elsewhere", 0, range(4))
    summary = elsewhere / "summary.json"
    summary.write_text(summary.read_text().replace('"reference_voxels": 4', '"reference_voxels": 5', 1))
    message = "against the same labels, got case_0 with 4 true voxels of a_core for x, 5 for y"
    with pytest.raises(ValueError, match=message):
        compare_models(find_models([models[0], elsewhere], ["x", "y"]), out)

    with pytest.raises(ValueError, match=r"names must be different \(give them with --names\), got"):
        find_models(models)
    with pytest.raises(ValueError, match="names must be one for each of the 2 models, got"):
        find_models(models, ["x"])
    with pytest.raises(FileNotFoundError, match=r"labels: no summary\.json, scores/summary\.json or fold_K"):
        find_models([tmp_path / "good" / "labels"])
