"""Post-processing as runs decide on it, and as their predictions are given it."""

import dataclasses
import json
import shutil

import nibabel
import numpy as np
import pytest

from jaxmamba3d import experiment
from jaxmamba3d.data import Case
from jaxmamba3d.evaluation import Postprocessing, apply_postprocessing, read_evaluation
from jaxmamba3d.evaluation.postprocessing import Trial
from jaxmamba3d.run import open_run


def labels_of(path):
    return np.asarray(nibabel.load(path).dataobj)


@pytest.fixture
def copied(finished, tmp_path):
    """The finished run, to be changed, and its workspace."""
    shutil.copytree(finished[0].folder, tmp_path / "run")
    config = dataclasses.replace(finished[0].config, output=str(tmp_path / "run"))
    return open_run(config.output), experiment.prepare(config)


@pytest.fixture
def pretend(monkeypatch):
    """Predictions that are the truth, with a stray voxel of some class in a corner."""

    def pretend(stray):
        def predict(run, cases, output, **options):
            output.mkdir(exist_ok=True)
            for case in cases:
                label = nibabel.load(case.label)
                data = np.asarray(label.dataobj).copy()
                data[-1, -1, -1] = stray
                nibabel.save(nibabel.Nifti1Image(data, label.affine), output / f"{case.name}.nii.gz")

        monkeypatch.setattr("jaxmamba3d.experiment.validation.predict", predict)

    return pretend


def test_a_fold_decides_on_its_validation_cases(copied, pretend):
    run, workspace = copied
    folder = run.fold_folder(0)
    pretend(stray=1)
    experiment.predict_validation_cases(run, workspace, 0)
    before = experiment.score_validation_cases(run, workspace, 0)
    assert experiment.combine_folds(run, workspace) is None
    (case,) = before.cases
    decision = json.loads((folder / "postprocessing.json").read_text())
    assert [trial["kept"] for trial in decision["trials"]] in ([True, False, False], [False, True, False])
    assert decision == json.loads((run.folder / "postprocessing.json").read_text())
    assert run.postprocessing().to_json() == decision
    raw = labels_of(folder / "validation" / f"{case}.nii.gz")
    clean = labels_of(folder / "validation_postprocessed" / f"{case}.nii.gz")
    assert (raw[-1, -1, -1], clean[-1, -1, -1]) == (1, 0)
    assert np.count_nonzero(raw != clean) == 1
    after = json.loads((folder / "scores_postprocessed" / "summary.json").read_text())
    assert before.structures["left"]["dice"].mean < after["structures"]["left"]["dice"]["mean"] == 1
    # What no longer helps leaves nothing behind.
    pretend(stray=0)
    experiment.predict_validation_cases(run, workspace, 0)
    experiment.score_validation_cases(run, workspace, 0)
    experiment.combine_folds(run, workspace)
    assert run.postprocessing().steps == ()
    assert not (folder / "validation_postprocessed").exists()
    assert not (folder / "scores_postprocessed").exists()


def test_a_run_decides_on_all_folds(copied, pretend):
    run, workspace = copied
    pretend(stray=1)
    experiment.predict_validation_cases(run, workspace, 0)
    experiment.score_validation_cases(run, workspace, 0)
    shutil.copytree(run.fold_folder(0) / "checkpoints", run.fold_folder(1) / "checkpoints")
    pretend(stray=2)
    experiment.predict_validation_cases(run, workspace, 1)
    experiment.score_validation_cases(run, workspace, 1)
    scores = experiment.combine_folds(run, workspace)
    assert len(scores.cases) == 2
    assert repr(read_evaluation(run.folder / "scores")) == repr(scores)  # NaN is not equal to NaN
    first, other = (
        Postprocessing.from_json(json.loads((run.fold_folder(n) / "postprocessing.json").read_text()))
        for n in (0, 1)
    )
    together = run.postprocessing()
    assert (first.cases, other.cases, together.cases) == (1, 1, 2)
    removed = {trial.structure: trial.removed_voxels for trial in together.trials if trial.kept}
    assert removed
    assert sum(removed.values()) >= 2
    after = read_evaluation(run.folder / "scores_postprocessed")
    assert after.cases == scores.cases
    assert after.mean["dice"] > scores.mean["dice"]
    clean = {path.name for path in (run.folder / "validation_postprocessed").glob("*.nii.gz")}
    assert clean == {f"{case}.nii.gz" for case in scores.cases}
    page = experiment.write_report(run).read_text()
    assert page.count("Scores without and with it") == 3  # the run's and each fold's


def test_predictions_are_given_what_the_run_decided(finished, dataset, tmp_path):
    run, _ = finished
    image = sorted((dataset / "imagesTr").glob("case_0_*.nii.gz"))
    cases = [Case("x", tuple(image))]

    def predicted(decision):
        experiment.predict(run, cases, tmp_path / "out", folds=[0], postprocessing=decision)
        return labels_of(tmp_path / "out" / "x.nii.gz")

    raw = predicted(None)
    trials = [Trial(name, (value,), 0.5, 0.6, 10, True) for name, value in (("left", 1), ("right", 2))]
    decision = Postprocessing(tuple(trials), 1)
    cleaned = apply_postprocessing(raw, decision)
    assert not np.array_equal(cleaned, raw)
    np.testing.assert_array_equal(predicted(decision), cleaned)
    nothing = Postprocessing(tuple(dataclasses.replace(trial, kept=False) for trial in trials), 1)
    np.testing.assert_array_equal(predicted(nothing), raw)
