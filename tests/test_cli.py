"""The commands as people type them; what they get wrong ends in one sentence."""

import json
import logging
import os
import shutil
import subprocess
import sys

import nibabel
import numpy as np
import pytest
from real_data import ROOT
from small_datasets import image_and_label, write_decathlon, write_nifti

from jaxmamba3d import cli, experiment, training
from jaxmamba3d.config_file import load_config

CONFIG = """
from jaxmamba3d.config import DataConfig, ExperimentConfig, NetOptions, OptimConfig, TrainConfig

def get_config():
    return ExperimentConfig(
        output="run",
        data=DataConfig("data", patch_size=(8, 8, 8), batch_size=2),
        net=NetOptions("resunet", (4, 8), blocks_per_stage=(1, 1), decoder_blocks_per_stage=(1,)),
        optim=OptimConfig(schedule="constant"),
        train=TrainConfig(epochs=1, steps_per_epoch=2, validation_steps=1),
    )
"""


@pytest.fixture(autouse=True)
def logging_as_it_was():
    """A command sets up logging to the standard error of its test, which is closed after it."""
    root, package = logging.getLogger(), logging.getLogger("jaxmamba3d")
    before = root.handlers[:], root.level, package.level
    yield
    root.handlers[:], root.level, package.level = before


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs a command in the test's folder: its exit code or message (None: it went well), what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["jaxmamba3d", *map(str, arguments)])
        monkeypatch.setattr(training, "use_all_cores", lambda: None)  # the tests' jax is running already
        message = None
        try:
            cli.main()
        except SystemExit as stop:
            message = stop.code
        printed = capsys.readouterr()
        return message, printed.out + printed.err

    return run


def test_the_whole_way_step_by_step(command, tmp_path):
    write_decathlon(tmp_path / "data")
    (tmp_path / "config.py").write_text(CONFIG)
    for arguments in (
        ("plan", "data", "--output", "work", "--processes", "1"),
        ("preprocess", "work", "--processes", "1"),
        ("train", "config.py", "--data.work", "work", "--train.seed", "3"),
        (
            "predict",
            "run",
            "--input",
            "data",
            "--output",
            "predictions",
            "--no-mirroring",
            "--probabilities",
            "--no-postprocessing",
        ),
    ):
        assert command(*arguments)[0] in (None, 0), arguments
    assert json.loads((tmp_path / "run" / "config.json").read_text())["train"]["seed"] == 3
    assert json.loads((tmp_path / "run" / "fold_0" / "summary.json").read_text())["training"]["epochs"] == 1
    message, out = command("report", "run", "--output", "page.html")
    assert message in (None, 0)
    assert "report written to page.html" in out
    assert "resunet on data" in (tmp_path / "page.html").read_text(encoding="utf-8")
    for labels in ("data/labelsTr", "data"):
        message, out = command("evaluate", "predictions", labels, "--output", "scores")
        assert message in (None, 0)
        assert "| left |" in out
    assert {path.name for path in (tmp_path / "scores").iterdir()} == {
        "scores.csv",
        "summary.json",
        "summary.md",
        "summary.tex",
    }
    predictions = sorted((tmp_path / "predictions").glob("*.nii.gz"))
    assert len(predictions) == 5
    for path in predictions:
        probabilities = np.load(path.with_name(path.name.replace(".nii.gz", ".npz")))["probabilities"]
        labels = np.asarray(nibabel.load(path).dataobj)
        assert probabilities.shape == (3, *labels.shape[::-1])
        np.testing.assert_allclose(probabilities.sum(0), 1, rtol=1e-5)
        np.testing.assert_array_equal(probabilities.argmax(0), labels.T)
    shutil.copytree("predictions", "same")
    assert command("ensemble", "predictions", "same", "--output", "both", "--probabilities")[0] in (None, 0)
    for path in predictions:
        np.testing.assert_array_equal(nibabel.load(f"both/{path.name}").dataobj, nibabel.load(path).dataobj)
    message, out = command("ensemble", "predictions", "--output", "both")
    assert message == "error: predictions must be two or more different folders, got predictions"


def test_models_are_compared(command, tmp_path):
    write_decathlon(tmp_path / "data", cases=3)
    for model, shift in (("good", 0), ("bad", 2)):
        for number in range(3):
            label = np.roll(image_and_label(number)[1], shift, axis=0)
            write_nifti(tmp_path / model / f"case_{number}.nii.gz", label)
        assert command("evaluate", model, "data/labelsTr")[0] in (None, 0)
    figure = ("--images", "data/imagesTr", "--labels", "data/labelsTr", "--rows", "2")
    message, out = command("compare", "good", "bad", "--output", "out", *figure)
    assert message in (None, 0)
    assert "| good | **1.0000** ± 0.0000 |" in out
    names = {f"comparison.{ending}" for ending in ("md", "csv", "tex", "png")}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    message, _ = command("compare", "good", "bad", "--output", "out", "--images", "data/imagesTr")
    assert message == "error: images and labels must be given both or neither, got one"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("plan", "nowhere", "--output", "work"), "nowhere: no such dataset folder"),
        (("preprocess", "nowhere"), "nowhere: not a work folder; make one with `jaxmamba3d plan`"),
        (("train",), "train must be given the path of a config file first"),
        (("train", "nowhere.py"), "nowhere.py: no such config file"),
        (("predict", "nowhere", "--input", "a", "--output", "b"), "nowhere: not a run folder"),
        (("report", "nowhere"), "nowhere: not a run folder"),
        (("bench", "pipeline", "nowhere"), "nowhere: not a work folder; make one with `jaxmamba3d plan`"),
        (("evaluate", "nowhere", "labels"), "nowhere"),
        (
            ("compare", "nowhere", "--output", "out"),
            "nowhere: no summary.json, scores/summary.json",
        ),
        (
            ("import-weights", "w.pth", "--output", "r", "--plans", "p.json", "--dataset-json", "d.json"),
            "w.pth: no such file of weights",
        ),
    ],
)
def test_what_is_not_there_is_named_in_one_sentence(command, arguments, message):
    found, _ = command(*arguments)
    assert found.startswith("error: ")
    assert message in found
    assert "\n" not in found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "must be a file that defines get_config(), got none"),
        ("x = ", "must be a config file, got SyntaxError"),
        ("import nowhere_to_be_found", "must be a config file, got ModuleNotFoundError"),
        ("x = 1\n{}['a']", "must be a config file, got KeyError: 'a' (config.py, line 2)"),
        ("def get_config():\n    return 5", "a get_config() that returns an ExperimentConfig, got int"),
    ],
)
def test_files_that_are_no_config(command, tmp_path, text, message):
    (tmp_path / "config.py").write_text(text)
    assert message in command("train", "config.py")[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--train.epochs", "0"), "train.epochs must be greater than 0, got 0"),
        (("--net.name", "unet"), "segmambaskip"),
        (("--train.epoch", "3"), "--train.epochs"),
        (("--data.fold", "-1"), "data.fold must be 0 or more, or all, got -1"),
        (("--data.fold", "each"), "all"),
        (("--optim.schedule", "linear"), "one_cycle"),
        (("--train.mirror-axes", "0", "0"), "train.mirror_axes must be different axes out of 0, 1, 2"),
        (("--net.scan-implementation", "fast"), "reference"),
    ],
)
def test_settings_that_cannot_be_are_refused(command, tmp_path, arguments, message):
    (tmp_path / "config.py").write_text(CONFIG)
    code, printed = command("train", "config.py", *arguments)
    assert code not in (None, 0)
    assert message in printed
    assert not (tmp_path / "run").exists()


def test_configs_of_two_folders_import_their_own_siblings(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "base.py").write_text(f"OUTPUT = {folder!r}")
        text = CONFIG.replace("def get_config", "from base import OUTPUT\n\ndef get_config")
        (tmp_path / folder / "config.py").write_text(text.replace('"run"', "OUTPUT"))
    outputs = [load_config(tmp_path / folder / "config.py").output for folder in ("a", "b")]
    assert outputs == ["a", "b"]


def test_the_package_is_a_program(tmp_path):
    command = [sys.executable, "-m", "jaxmamba3d", "plan", "nowhere", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr == f"error: {ROOT / 'nowhere'}: no such dataset folder\n"


def test_help_of_train_needs_no_config(command):
    message, printed = command("train", "--help")
    assert message is None
    assert "`train CONFIG.py [--field value ...]`" in printed


def test_all_folds_and_the_word_after_a_colon_reach_the_experiment(command, tmp_path, monkeypatch):
    text = CONFIG.replace("get_config()", "get_config(net='resunet')").replace('"resunet"', "net")
    (tmp_path / "config.py").write_text(text)
    ran = []
    monkeypatch.setattr(experiment, "run_experiment", ran.append)
    command("train", "config.py:segmamba", "--data.fold", "all")
    command("train", tmp_path / "config.py", "--data.fold", "2")
    assert [(config.net.name, config.data.fold) for config in ran] == [("segmamba", "all"), ("resunet", 2)]


def test_train_py_lists_every_field():
    environment = os.environ | {"COLUMNS": "200"}
    command = [sys.executable, "train.py", "configs/quickstart.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    for field in (
        "--optim.learning-rate",
        "--net.name",
        "--data.patch-size",
        "--train.mirror-axes",
        "--output",
    ):
        assert field in done.stdout


@pytest.mark.parametrize(("level", "shown"), [(None, False), ("info", False), ("debug", True)])
def test_a_traceback_is_there_for_those_who_ask(command, monkeypatch, level, shown):
    if level is not None:
        monkeypatch.setenv("JAXMAMBA3D_LOG_LEVEL", level)
    message, printed = command("preprocess", "nowhere")
    assert message == "error: nowhere: not a work folder; make one with `jaxmamba3d plan`"
    assert ("Traceback" in printed) == shown


def test_a_log_level_that_is_none_is_named(command, monkeypatch):
    monkeypatch.setenv("JAXMAMBA3D_LOG_LEVEL", "loud")
    message, _ = command("preprocess", "nowhere")
    assert message.startswith("error: JAXMAMBA3D_LOG_LEVEL must be one of DEBUG, INFO")
