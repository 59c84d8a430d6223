"""summary.json of a fold."""

import csv
import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx
from small_runs import EPOCHS, params_of

from jaxmamba3d.evaluation import read_evaluation
from jaxmamba3d.experiment import fold_summary, write_summary
from jaxmamba3d.run import open_run


def strict(text):
    """JSON without the numbers that only Python's reader knows."""

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture
def copied(finished, tmp_path):
    shutil.copytree(finished[0].folder, tmp_path / "run", ignore=shutil.ignore_patterns("work"))
    return open_run(tmp_path / "run")


def test_a_run_ends_with_it(finished):
    run, scores = finished
    folder = run.fold_folder(0)
    found = strict((folder / "summary.json").read_text())
    assert found == json.loads(json.dumps(fold_summary(run, 0)))
    parameters = sum(np.size(leaf) for leaf in params_of(run))
    assert found["net"] == {"name": "resunet", "parameters": parameters}
    assert parameters == sum(leaf.size for leaf in jax.tree.leaves(nnx.state(run.build_net(), nnx.Param)))
    described = {key: found[key] for key in ("dataset", "fold", "configuration", "patch_size", "batch_size")}
    assert described == {
        "dataset": "Dataset001_Small",
        "fold": 0,
        "configuration": "3d_fullres",
        "patch_size": [8, 8, 8],
        "batch_size": 2,
    }

    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    training = found["training"]
    assert training["epochs"] == training["planned_epochs"] == EPOCHS == len(rows)
    assert training["seconds"] == pytest.approx(sum(float(row["seconds"]) for row in rows))
    dice = [float(row["pseudo_dice mean"]) for row in rows]
    averages = [dice[0]]
    for value in dice[1:]:
        averages.append(0.9 * averages[-1] + 0.1 * value)
    assert training["best_epoch"] == np.argmax(averages) + 1
    assert training["best_mean_pseudo_dice"] == dice[np.argmax(averages)]
    (best,) = (folder / "checkpoints" / "best").iterdir()
    assert int(best.name) == training["best_epoch"] * run.config.train.steps_per_epoch
    del rows[-1]["epoch"]
    np.testing.assert_array_equal(
        [np.nan if training["last"][name] is None else training["last"][name] for name in rows[-1]],
        [float(value) for value in rows[-1].values()],
    )

    validation = found["validation"]
    assert validation["cases"] == len(scores.cases)
    assert set(validation["structures"]) == {"left", "right"}
    assert validation["mean"]["dice"] == pytest.approx(scores.mean["dice"])
    for name, statistics in scores.structures.items():
        for metric in ("dice", "hd95_mm"):
            stored = validation["structures"][name][metric]
            expected = dataclasses.asdict(statistics[metric])
            # A single case has no standard deviation.
            assert stored == {key: None if value != value else value for key, value in expected.items()}
    versions = json.loads((run.folder / "versions.json").read_text())
    assert found["versions"] | {"devices": found["devices"]} == versions


def test_postprocessed_scores_are_told_apart(copied):
    folder = copied.fold_folder(0)
    shutil.rmtree(folder / "scores_postprocessed", ignore_errors=True)
    assert fold_summary(copied, 0)["validation_postprocessed"] is None
    shutil.copytree(folder / "scores", folder / "scores_postprocessed")
    found = fold_summary(copied, 0)
    assert found["validation_postprocessed"] == found["validation"]
    assert (
        read_evaluation(folder / "scores_postprocessed").mean["dice"] == found["validation"]["mean"]["dice"]
    )


def test_what_is_no_number_is_null(copied):
    folder = copied.fold_folder(0)
    table = (folder / "metrics.csv").read_text().splitlines()
    values = dict(zip(table[0].split(","), table[-1].split(","), strict=True))
    last = values | {"gradient_norm": "inf", "pseudo_dice left": "nan", "new_column": "3.5"}
    lines = [",".join(last), ",".join(last.values())]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    write_summary(copied, 0)
    found = strict((folder / "summary.json").read_text())["training"]["last"]
    assert found["gradient_norm"] is None
    assert found["pseudo_dice left"] is None
    assert found["new_column"] == 3.5


def test_imported_weights_have_no_training(copied):
    folder = copied.fold_folder(0)
    (folder / "metrics.csv").unlink()
    shutil.rmtree(folder / "scores")
    (copied.folder / "versions.json").unlink()
    found = fold_summary(copied, 0)
    assert (found["training"], found["validation"], found["devices"]) == (None, None, None)
    assert found["net"]["parameters"] > 0
