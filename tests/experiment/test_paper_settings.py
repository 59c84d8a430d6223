"""A whole run with what the paper's configs set: Mamba blocks, recomputed, in bfloat16, and mirroring."""

import dataclasses
import math

from small_runs import small_config

from jaxmamba3d import experiment
from jaxmamba3d.experiment.epochs import read_epochs
from jaxmamba3d.run import open_run


def test_from_the_dataset_to_its_scores(dataset, tmp_path):
    config = small_config(dataset, tmp_path / "run", epochs=1, accumulate=2)
    net = dataclasses.replace(config.net, name="segmamba", remat=True, dtype="bfloat16")
    predict = dataclasses.replace(config.predict, mirroring=True)
    scores = experiment.run_experiment(dataclasses.replace(config, net=net, predict=predict))
    run = open_run(config.output)
    assert run.net.remat
    assert math.isfinite(read_epochs(run.fold_folder(0)).rows[1]["train_loss"])
    cases = {
        path.name.removesuffix(".nii.gz") for path in (run.fold_folder(0) / "validation").glob("*.nii.gz")
    }
    assert cases == set(scores.cases) != set()
