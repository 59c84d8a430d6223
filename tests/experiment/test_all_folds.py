"""All folds in one call: trained in turn, scored together, kept when they are finished."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from jaxmamba3d import cli, experiment
from jaxmamba3d.evaluation import find_models, read_evaluation
from jaxmamba3d.run import import_weights, open_run
from jaxmamba3d.training import loop

FILES = {"scores.csv", "summary.json", "summary.md", "summary.tex"}


def test_the_scores_are_those_of_all_folds_cases(finished_folds):
    run, scores = finished_folds
    assert run.config.data.fold == "all"
    assert run.validated_folds() == (0, 1)
    assert scores.cases == ("case_0", "case_1", "case_2")
    assert {path.name for path in (run.folder / "scores").iterdir()} == FILES
    assert "3 cases" in (run.folder / "scores" / "summary.md").read_text()
    folds = [read_evaluation(run.fold_folder(fold) / "scores") for fold in (0, 1)]
    assert [fold.cases for fold in folds] == [("case_0",), ("case_1", "case_2")]
    means = []
    for structure in ("left", "right"):
        values = [s.dice for fold in folds for s in fold.scores if s.structure == structure]
        means.append(np.nanmean(values))
        assert scores.structures[structure]["dice"].mean == pytest.approx(means[-1])
    assert scores.mean["dice"] == pytest.approx(np.mean(means))
    assert repr(read_evaluation(run.folder / "scores")) == repr(scores)


def test_each_fold_is_a_fold_and_the_run_is_post_processed_once(finished_folds):
    run, _ = finished_folds
    for fold, cases in ((0, 1), (1, 2)):
        folder = run.fold_folder(fold)
        summary = json.loads((folder / "summary.json").read_text())
        assert (summary["fold"], summary["validation"]["cases"]) == (fold, cases)
        assert json.loads((folder / "postprocessing.json").read_text())["cases"] == cases
    assert run.postprocessing().cases == 3


def test_models_are_compared_by_their_folds(finished_folds):
    run, _ = finished_folds
    (model,) = find_models([run.folder])
    assert [evaluation.cases for evaluation in model.evaluations] == [("case_0",), ("case_1", "case_2")]


def test_predictions_average_all_of_them(finished_folds, dataset, tmp_path, monkeypatch):
    run, _ = finished_folds
    taken = {}
    monkeypatch.setattr(experiment, "predict", lambda *_, **options: taken.update(options))
    cli.predict(run.folder, input=dataset / "imagesTr", output=tmp_path / "out")
    assert taken["folds"] == (0, 1)
    assert taken["postprocessing"].cases == 3


def test_finished_folds_are_kept_and_leave_the_device_free(finished_folds, tmp_path, monkeypatch):
    """Without its last fold, the run comes to what it was; the first one takes no step."""
    run, scores = finished_folds
    shutil.copytree(run.folder, tmp_path / "run", ignore=shutil.ignore_patterns("fold_1"))
    shutil.rmtree(tmp_path / "run" / "scores")
    compiled, arrays = [], []
    compile_fitting, train = loop.compile_fitting, experiment.train
    monkeypatch.setattr(
        loop, "compile_fitting", lambda *a, **o: compiled.append(1) or compile_fitting(*a, **o)
    )
    name = "jaxmamba3d.experiment.experiment.train"
    monkeypatch.setattr(name, lambda *a: arrays.append(len(jax.live_arrays())) or train(*a))
    again = experiment.run_experiment(dataclasses.replace(run.config, output=str(tmp_path / "run")))
    assert len(compiled) == 2  # training and validation step of the second fold
    assert len(arrays) == 2
    assert arrays[1] <= arrays[0]
    assert repr(again) == repr(scores)
    assert {path.name for path in (tmp_path / "run" / "scores").iterdir()} == FILES


def test_one_fold_more_is_added_to_the_run_s_scores(finished_folds, tmp_path, monkeypatch):
    """As where each fold is a call of its own; what it returns is the fold's."""
    run, scores = finished_folds
    shutil.copytree(run.folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "scores")
    data = dataclasses.replace(run.config.data, fold=1)
    config = dataclasses.replace(run.config, output=str(tmp_path / "run"), data=data)
    fold = experiment.run_experiment(config)
    assert fold.cases == ("case_1", "case_2")
    assert open_run(tmp_path / "run").config.data.fold == 1
    assert repr(read_evaluation(tmp_path / "run" / "scores")) == repr(scores)


def test_weights_are_imported_as_one_fold(finished_folds, tmp_path):
    run, _ = finished_folds
    with pytest.raises(ValueError, match=r"data\.fold must be the number of one fold, got all"):
        import_weights({}, run.config, run.plans, None)
