"""The bench of the training input: what it counts, and what it writes."""

import json
import sys

import numpy as np
import pytest
from matplotlib.image import imread
from small_datasets import write_decathlon

from jaxmamba3d import cli, training
from jaxmamba3d.augment import AugmentationPlan
from jaxmamba3d.bench.pipeline import bench_pipeline
from jaxmamba3d.data import plan_workspace

PATCH, BATCH = (8, 8, 8), 2


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    workspace = plan_workspace(write_decathlon(folder / "data", channels=2), folder / "work", processes=1)
    workspace.preprocess(processes=1)
    return workspace


@pytest.fixture(scope="module")
def measured(work):
    output = work.folder.parent / "out"
    options = {"patch_size": PATCH, "batch_size": BATCH, "threads": 1, "seconds": 0.05, "repeats": 3}
    return bench_pipeline(work, output, **options), output


def test_the_numbers_fit_together(measured):
    rows, _ = measured
    assert [row.what for row in rows] == ["loading", "augmentation", "end to end"]
    initial = AugmentationPlan(PATCH).initial_patch_size
    size = np.prod(initial) * (2 * 4 + 2) / 1e6  # two channels of float32, a label of int16
    for row in rows:
        assert len(row.batches) == len(row.seconds) == 3
        assert min(row.batches) >= 1
        assert min(row.seconds) >= 0.05
        assert row.patches == BATCH * sum(row.batches)
        rates = [BATCH * count / seconds for count, seconds in zip(row.batches, row.seconds, strict=True)]
        assert row.patches_per_second == pytest.approx(np.median(rates))
        assert 0 <= row.spread <= max(rates) - min(rates)
        assert row.mb_per_second == pytest.approx(row.patches_per_second * size)


def test_the_files_tell_the_same(measured):
    rows, output = measured
    assert {path.name for path in output.iterdir()} == {"pipeline.md", "pipeline.json", "augmentation.png"}
    found = json.loads((output / "pipeline.json").read_text())
    assert found["patch_size"] == list(PATCH)
    assert found["channels"] == 2
    assert found["device"].startswith(f"{BATCH} x cpu"), "a device for each patch of the batch"
    table = (output / "pipeline.md").read_text().splitlines()
    assert any("patches of 8 x 8 x 8 voxels" in line and "1 thread reading" in line for line in table)
    for row, line, cells in zip(rows, table[-3:], found["rows"], strict=True):
        assert cells["patches_per_second"] == row.patches_per_second
        assert line == (
            f"| {cells['what']} | {cells['patches_per_second']:.1f} | {cells['spread']:.1f} | "
            f"{cells['mb_per_second']:.0f} | {cells['patches']} | 3 |"
        )


def test_the_picture_shows_the_labels(measured):
    pixels = imread(measured[1] / "augmentation.png")[..., :3].reshape(-1, 3)
    assert (np.ptp(pixels, axis=1) > 0.3).mean() > 1e-3, "outlines are coloured, all else is grey"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"configuration": "2d"}, "configuration must be one of 3d_fullres"),
        ({"patch_size": (8, 8, 0)}, "patch_size must be greater than 0"),
        ({"batch_size": 0}, "batch_size must be greater than 0, got 0"),
        ({"seconds": 0}, "seconds must be greater than 0, got 0"),
        ({"repeats": 0}, "repeats must be greater than 0, got 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(work, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        bench_pipeline(work, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["jaxmamba3d", "bench", "pipeline", *map(str, arguments)])
    monkeypatch.setattr(training, "use_all_cores", lambda: None)  # the tests' jax is running already
    cli.bench()


def test_the_command(work, tmp_path, monkeypatch, capsys):
    patch = ("--patch-size", *PATCH, "--batch-size", 1, "--seconds", 0.01, "--repeats", 1)
    run(monkeypatch, work.folder, "--output", tmp_path, *patch)
    assert capsys.readouterr().out == (tmp_path / "pipeline.md").read_text()


def test_folders_that_are_not_ready_are_named(work, tmp_path, monkeypatch):
    with pytest.raises(
        FileNotFoundError, match="nowhere: not a work folder; make one with `jaxmamba3d plan`"
    ):
        run(monkeypatch, tmp_path / "nowhere")
    plan_workspace(work.dataset.folder, tmp_path / "work", processes=1)
    with pytest.raises(FileNotFoundError, match="no preprocessed case; run `jaxmamba3d preprocess`"):
        run(monkeypatch, tmp_path / "work", "--output", tmp_path / "out")
