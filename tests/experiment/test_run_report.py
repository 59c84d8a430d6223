"""The page of a run, as a browser reads it."""

import base64
import csv
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from real_data import ROOT
from small_runs import EPOCHS

from jaxmamba3d.evaluation import read_evaluation
from jaxmamba3d.experiment import fold_summary, write_report
from jaxmamba3d.run import open_run

VOID = {"meta", "img"}
HOSTILE = '<b>left</b> & "co"'


class Page(HTMLParser):
    """Text, tables and pictures of a page; fails where tags do not match."""

    def __init__(self, path):
        super().__init__()
        self.open, self.text, self.pictures, self.tables, self.facts, self.tags = [], "", [], [], {}, set()
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        attributes = dict(attributes)
        assert not {"href", "onclick", "onload"} & attributes.keys()
        if tag == "img":
            self.pictures.append((attributes["src"], attributes["alt"]))
        if tag == "table":
            assert self.open[-1] == "div"  # the container that scrolls
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data
        if "dt" in self.open:
            self._name = data
        if "dd" in self.open:
            self.facts.setdefault(self._name, data)

    def table(self, head):
        """The first table whose last row of titles begins so."""
        found = [t for t in self.tables if any(row[: len(head)] == head for row in t[:2])]
        assert found, (head, [t[:2] for t in self.tables])
        return found[0]


@pytest.fixture
def copied(finished, tmp_path):
    shutil.copytree(finished[0].folder, tmp_path / "run", ignore=shutil.ignore_patterns("work"))
    return open_run(tmp_path / "run")


def change(path, change_text):
    path.write_text(change_text(path.read_text()))


def test_a_finished_run(copied, finished):
    _, scores = finished
    page = Page(write_report(copied))
    assert not list(copied.folder.glob(".unfinished*"))
    assert "resunet on Dataset001_Small" in page.text
    assert "Fold 0 finished" in page.text
    assert "Folds 1, 2, 3, 4 are not scored yet." in page.text
    summary = fold_summary(copied, 0)
    expected = {
        "Parameters": f"{summary['net']['parameters']:,}",
        "Patch": "8 x 8 x 8 voxels",
        "Batch size": "2",
        "Epochs": f"{EPOCHS}, each of 4 steps",
        "Optimizer": "radam",
        "Learning rate": "0.01, constant",
        "Devices": copied.devices(),
        "folds scored": "1 of 5",
    }
    assert page.facts.items() >= expected.items()
    assert "Structures: left, right" in page.text
    assert f"jax {copied.versions()['jax']}" in page.text

    table = page.table(["structure", "Dice", "HD95 (mm)"])
    rows = {row[0]: row[1:] for row in table[1:]}
    assert list(rows) == ["left", "right", "mean"]
    for name, statistics in scores.structures.items():
        assert rows[name][0] == f"{statistics['dice'].mean:.4f}"
    assert rows["mean"][0].split(" ±")[0] == f"{scores.mean['dice']:.4f}"

    cases = page.table(["case", "mean Dice"])[2:]
    assert [row[0] for row in cases] == list(scores.cases)
    dice = {score.structure: score.dice for score in scores.scores}
    assert cases[0][2] == f"{dice['left']:.4f}"

    with (copied.fold_folder(0) / "metrics.csv").open() as file:
        metrics = list(csv.DictReader(file))
    epochs = page.table(["epoch", "learning rate"])
    best = summary["training"]["best_epoch"]
    assert [row[0] for row in epochs[1:]] == [
        f"{n} (best)" if n == best else f"{n}" for n in range(1, 1 + EPOCHS)
    ]
    assert len(epochs[0]) == len(metrics[0])
    for row, expected in zip(epochs[1:], metrics, strict=True):
        for cell, value in zip(row[1:], list(expected.values())[1:], strict=True):
            assert cell == ("-" if value == "nan" else f"{float(value):.4g}")

    json_text = re.search(r'\{\s+"output":.*?\n\}', page.text, re.DOTALL).group()
    assert json.loads(json_text) == json.loads((copied.folder / "config.json").read_text())


def test_it_needs_no_other_file(copied):
    path = write_report(copied)
    page = Page(path)
    assert not {"script", "link", "iframe", "a"} & page.tags
    folder = copied.fold_folder(0)
    files = [folder / "curves.png", folder / "overlays.png"]
    kind = "data:image/png;base64,"
    assert all(source.startswith(kind) and alt for source, alt in page.pictures)
    found = [base64.b64decode(source.removeprefix(kind)) for source, _ in page.pictures]
    assert found == [file.read_bytes() for file in files]
    text = path.read_text(encoding="utf-8")
    assert "http" not in re.sub(r"base64,[^\"]+", "", text)
    assert "prefers-color-scheme: dark" in text
    shutil.copy(folder / "curves.png", folder / "another_picture.png")
    assert (found[0], "another picture") in [
        (base64.b64decode(source.removeprefix(kind)), alt)
        for source, alt in Page(write_report(copied)).pictures
    ]


def test_folds_together(copied):
    shutil.copytree(copied.fold_folder(0), copied.fold_folder(1))
    other = copied.fold_folder(1) / "scores" / "summary.json"

    def better(text):
        content = json.loads(text)
        for score in content["scores"]:
            score |= {"case": "other", "dice": 0.75}
        return json.dumps(content)

    change(other, better)
    page = Page(write_report(copied))
    first, second = (read_evaluation(copied.fold_folder(n) / "scores") for n in (0, 1))
    table = page.table(["structure", "fold 0", "fold 1", "all folds"])
    for row in table[1:3]:
        values = [evaluation.structures[row[0]]["dice"].mean for evaluation in (first, second)]
        assert row[1:3] == [f"{value:.4f}" for value in values]
        assert row[3].startswith(f"{sum(values) / 2:.4f} ± ")
    assert float(page.facts["mean Dice"]) == pytest.approx((first.mean["dice"] + 0.75) / 2, abs=1e-4)
    assert page.facts["mean Dice"] == table[3][3].split(" ±")[0]
    assert page.facts["folds scored"] == "2 of 5"
    assert page.facts["cases scored"] == "2"


@pytest.mark.parametrize(
    ("dice", "hd95", "written"), [(0.93, 5.698, ("0.9300", "5.70")), (0.02034, None, ("0.0203", "-"))]
)
def test_tiles_are_written_as_in_the_tables(copied, dice, hd95, written):
    def same(text):
        content = json.loads(text)
        for score in content["scores"]:
            score |= {"dice": dice, "hd95_mm": hd95}
        return json.dumps(content)

    change(copied.fold_folder(0) / "scores" / "summary.json", same)
    page = Page(write_report(copied))
    mean = page.table(["structure", "Dice", "HD95 (mm)"])[3]
    assert tuple(cell.split(" ±")[0] for cell in mean[:3]) == ("mean", *written)
    assert (page.facts["mean Dice"], page.facts["mean HD95 (mm)"]) == written


def test_long_tables_are_folded(copied):
    def many(text):
        content = json.loads(text)
        one = content["scores"]
        content["scores"] = [s | {"case": f"case_{n}", "dice": n / 40} for n in range(40) for s in one]
        return json.dumps(content)

    folder = copied.fold_folder(0)
    change(folder / "scores" / "summary.json", many)
    first, *rows = (folder / "metrics.csv").read_text().splitlines()
    rest = rows[0].split(",", 1)[1]
    (folder / "metrics.csv").write_text("\n".join([first, *(f"{n},{rest}" for n in range(995))]) + "\n")
    page = Page(write_report(copied))
    assert "The other 28 cases" in page.text
    tables = [table for table in page.tables if table[1][0] == "case"]
    names = [row[0] for table in tables for row in table[2:]]
    assert names == [f"case_{n}" for n in range(40)]
    epochs = [row[0] for row in page.table(["epoch", "learning rate"])[1:]]
    assert epochs[0].startswith("1")
    assert epochs[-1] == "995"
    assert len(epochs) <= 12
    assert "The scores are those after epoch 3; 995 are trained now." in page.text


def test_a_run_that_is_training(copied):
    folder = copied.fold_folder(0)
    for path in ("scores", "validation", "scores_postprocessed"):
        shutil.rmtree(folder / path, ignore_errors=True)
    for path in ("overlays.png", "summary.json", "postprocessing.json"):
        (folder / path).unlink()
    (copied.folder / "postprocessing.json").unlink()
    page = Page(write_report(copied))
    assert "Fold 0 not scored" in page.text
    longer = dataclasses.replace(copied.config, train=dataclasses.replace(copied.config.train, epochs=10))
    page = Page(write_report(dataclasses.replace(copied, config=longer)))
    assert "Fold 0 unfinished" in page.text
    assert f"{EPOCHS} of 10 epochs are trained; scores follow the last." in page.text
    assert "No fold has been scored yet" in page.text
    assert "Time left at this pace" in page.facts
    assert page.facts["Best epoch"].endswith(f"mean pseudo-Dice {page.facts['best mean pseudo-Dice']}")
    assert page.facts["folds scored"] == "0 of 5"
    shown = [base64.b64decode(source.partition(",")[2]) for source, _ in page.pictures]
    assert shown == [(folder / name).read_bytes() for name in ("curves.png", "patches.png")]
    shutil.rmtree(folder)
    page = Page(write_report(copied))
    assert "No fold has begun yet." in page.text
    folder.mkdir()
    assert "Fold 0 just begun" in Page(write_report(copied)).text


@pytest.mark.parametrize(
    ("imported", "badge", "why"),
    [
        (True, "imported", "It was imported: there is no record of the training here"),
        (False, "no record", "metrics.csv is missing: there is no record of the training"),
    ],
)
def test_weights_without_a_record_of_their_training(copied, imported, badge, why):
    folder = copied.fold_folder(0)
    if imported:
        for part in ("meta", "optimizer"):
            for path in copied.checkpoints(0).glob(f"*/*/{part}"):
                shutil.rmtree(path)
    for path in list(folder.iterdir()):
        if path.name != "checkpoints":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name in ("postprocessing.json", "splits_final.json", "versions.json"):
        (copied.folder / name).unlink()
    page = Page(write_report(copied))
    assert f"Fold 0 {badge}" in page.text
    assert f"{why}, and it is not scored." in page.text
    assert page.facts["folds scored"] == "0"
    assert not {"Epochs", "Learning rate"} & page.facts.keys()
    assert page.pictures == []


def test_names_are_escaped(copied):
    def rename(text):
        def renamed(entry):
            if isinstance(entry, dict):
                return {renamed(key): renamed(value) for key, value in entry.items()}
            if isinstance(entry, list):
                return [renamed(value) for value in entry]
            names = {"left": HOSTILE, "Dataset001_Small": "<i>&amp;", "case_0": "<case>"}
            return names.get(entry, entry) if isinstance(entry, str) else entry

        return json.dumps(renamed(json.loads(text)))

    folder = copied.fold_folder(0)
    for path in (folder / "scores", folder / "scores_postprocessed", folder, copied.folder):
        for file in path.glob("*.json"):
            change(file, rename)
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.reader(file))
    with (folder / "metrics.csv").open("w") as file:
        csv.writer(file).writerows([[cell.replace("left", HOSTILE) for cell in row] for row in rows])
    page = Page(write_report(open_run(copied.folder)))
    assert not {"b", "i", "case"} & page.tags
    assert "resunet on <i>&amp;" in page.text
    assert f"Structures: {HOSTILE}, right" in page.text
    assert page.table(["structure", "Dice"])[1][0] == HOSTILE
    assert f"pseudo-Dice {HOSTILE}" in page.table(["epoch", "learning rate"])[0]


def test_where_it_is_written(copied, tmp_path):
    output = tmp_path / "a" / "b.html"
    assert write_report(copied, output) == output
    assert Page(output).pictures
    with pytest.raises(ValueError, match="output must be a file, got the folder"):
        write_report(copied, tmp_path / "a")
    with pytest.raises(ValueError, match="the folder of the output must be a folder that can be written"):
        write_report(copied, output / "c.html")
    change(copied.fold_folder(0) / "scores" / "summary.json", lambda text: "{}")
    before = output.read_bytes()
    with pytest.raises(ValueError, match=r"summary\.json must hold scores that `jaxmamba3d evaluate` wrote"):
        write_report(copied, output)
    assert output.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "content"), [("splits_final.json", '{"train": []}'), ("versions.json", "[]")]
)
def test_a_damaged_file_is_named(copied, name, content):
    (copied.folder / name).write_text(content)
    with pytest.raises(ValueError, match=rf"{name} must hold .*, got a JSON "):
        write_report(copied)


def test_no_device_is_touched(copied):
    """A training beside it may hold the only TPU."""
    code = (
        "import sys; from jaxmamba3d.experiment import write_report; from jaxmamba3d.run import open_run\n"
        "write_report(open_run(sys.argv[1]))"
    )
    environment = os.environ | {"JAX_PLATFORMS": "nowhere"}
    command = [sys.executable, "-c", code, str(copied.folder)]
    subprocess.run(command, check=True, env=environment, cwd=ROOT)
    assert Page(copied.folder / "report.html").pictures
