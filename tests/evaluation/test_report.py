"""Folders of segmentations: scores, summaries, files, and what is refused."""

import csv
import dataclasses
import json
import logging
import math
import shutil
import subprocess
import sys

import nibabel
import numpy as np
import pytest
from small_datasets import change_json, write_btcv, write_decathlon

from jaxmamba3d.evaluation import Protocol, evaluate_folders, evaluate_together, read_evaluation
from jaxmamba3d.evaluation.metrics import dice, hausdorff95, normalized_surface_distance
from jaxmamba3d.files import without_nan

SPACING = (0.8, 1.0, 3.0)
SHAPE = (12, 10, 7)
TWO = Protocol("two", {"first": (1,), "both": (1, 2)})


def write(path, labels, affine=None, spacing=SPACING, dtype=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([*spacing, 1]) if affine is None else affine
    nibabel.save(nibabel.Nifti1Image(np.asarray(labels, dtype), affine), path)


def blocks(seed):
    """Label 2 around label 1, somewhere."""
    labels = np.zeros(SHAPE, np.uint8)
    x, y, z = np.random.default_rng(seed).integers(0, (5, 4, 2))
    labels[x : x + 6, y : y + 5, z : z + 4] = 2
    labels[x + 1 : x + 4, y + 1 : y + 4, z + 1 : z + 3] = 1
    return labels


@pytest.fixture
def folders(tmp_path):
    """Cases a and b predicted off by a few voxels."""
    for case, seed in (("a", 0), ("b", 1)):
        write(tmp_path / "labels" / f"{case}.nii.gz", blocks(seed))
        write(tmp_path / "predictions" / f"{case}.nii.gz", blocks(seed + 10))
    return tmp_path


def evaluate(folder, **options):
    options = {"protocol": TWO, "progress": False, "threads": 2} | options
    return evaluate_folders(folder / "predictions", folder / "labels", folder / "scores", **options)


def score_of(evaluation, case, structure):
    (score,) = [s for s in evaluation.scores if (s.case, s.structure) == (case, structure)]
    return score


def test_scores_are_those_of_the_whole_masks(folders):
    evaluation = evaluate(folders)
    assert [(s.case, s.structure) for s in evaluation.scores] == [
        ("a", "first"),
        ("a", "both"),
        ("b", "first"),
        ("b", "both"),
    ]
    for seed, case in enumerate("ab"):
        for structure, labels in TWO.classes.items():
            ours, theirs = np.isin(blocks(seed + 10), labels), np.isin(blocks(seed), labels)
            score = score_of(evaluation, case, structure)
            assert score.dice == dice(ours, theirs)
            assert score.hd95_mm == pytest.approx(hausdorff95(ours, theirs, SPACING), rel=1e-6)
            assert score.hd95_voxels == pytest.approx(hausdorff95(ours, theirs), rel=1e-6)
            assert score.hd95_mm != pytest.approx(score.hd95_voxels, rel=1e-2)
            assert score.nsd == normalized_surface_distance(ours, theirs, SPACING, 2.0)
            assert (score.prediction_voxels, score.reference_voxels) == (ours.sum(), theirs.sum())
            assert score.reference_ml == pytest.approx(theirs.sum() * 2.4e-3, rel=1e-6)
            assert score.prediction_ml == pytest.approx(ours.sum() * 2.4e-3, rel=1e-6)


def test_volumes_are_each_segmentation_s_own(folders):
    write(folders / "predictions" / "a.nii.gz", blocks(0) * (blocks(0) == 1))
    score = score_of(evaluate(folders), "a", "both")
    assert score.prediction_ml == pytest.approx(score.prediction_voxels * 2.4e-3, rel=1e-5)
    assert score.reference_ml == pytest.approx(score.reference_voxels * 2.4e-3, rel=1e-5)
    assert score.prediction_voxels < score.reference_voxels


def test_the_cases_of_a_structure_are_those_that_have_a_dice(folders):
    write(folders / "predictions" / "a.nii.gz", np.zeros(SHAPE))
    left_out = dataclasses.replace(TWO, hd95_one_absent=math.nan)
    evaluation = evaluate(folders, protocol=left_out)
    statistics = evaluation.structures["first"]
    assert (statistics["dice"].cases, statistics["hd95_mm"].cases) == (2, 1)
    line = next(x for x in (folders / "scores/summary.md").read_text().splitlines() if "| first" in x)
    assert line.endswith("| 2 |")
    shown = f"{statistics['hd95_voxels'].mean:.2f}"
    assert shown in line.split(" | ")


def test_of_many_bad_cases_twenty_are_listed(folders):
    for number in range(25):
        write(folders / "labels" / f"c{number:02d}.nii.gz", blocks(number))
    with pytest.raises(ValueError, match="25 of 27 cases cannot be scored") as caught:
        evaluate(folders)
    _, *lines = str(caught.value).splitlines()
    assert lines[-1].strip() == "... and 5 others"
    assert [line.split(":")[0].strip() for line in lines[:-1]] == [f"c{number:02d}" for number in range(20)]


def test_isotropic_spacing_gives_voxels_too(tmp_path):
    for folder, seed in (("labels", 0), ("predictions", 10)):
        write(tmp_path / folder / "a.nii.gz", blocks(seed), spacing=(2, 2, 2))
    score = score_of(evaluate(tmp_path), "a", "both")
    assert score.hd95_voxels == pytest.approx(hausdorff95(blocks(0) > 0, blocks(10) > 0), rel=1e-12)
    assert score.hd95_mm == pytest.approx(2 * score.hd95_voxels, rel=1e-12)


def test_summary_leaves_absent_structures_out(folders):
    write(folders / "labels" / "c.nii.gz", np.zeros(SHAPE))
    write(folders / "predictions" / "c.nii.gz", np.zeros(SHAPE))
    evaluation = evaluate(folders)
    assert evaluation.cases == ("a", "b", "c")
    values = [score_of(evaluation, case, "first").dice for case in "ab"]
    statistic = evaluation.structures["first"]["dice"]
    assert statistic.mean == pytest.approx(np.mean(values))
    assert statistic.sd == pytest.approx(abs(values[0] - values[1]) / math.sqrt(2))
    assert statistic.cases == 2
    means = [evaluation.structures[s]["hd95_mm"].mean for s in ("first", "both")]
    assert evaluation.mean["hd95_mm"] == pytest.approx(np.mean(means))
    assert math.isnan(score_of(evaluation, "c", "both").nsd)


def test_a_missed_structure_costs_the_diagonal(folders):
    write(folders / "predictions" / "a.nii.gz", np.zeros(SHAPE))
    score = score_of(evaluate(folders), "a", "first")
    assert (score.dice, score.nsd) == (0, 0)
    assert score.hd95_mm == pytest.approx(math.hypot(12 * 0.8, 10, 21), rel=1e-6)
    assert score.hd95_voxels == pytest.approx(math.hypot(12, 10, 7))


def test_published_conventions_for_absent_structures(folders):
    write(folders / "predictions" / "a.nii.gz", np.zeros(SHAPE))
    evaluation = evaluate(folders, protocol="acdc")
    missed, nowhere = score_of(evaluation, "a", "RV"), score_of(evaluation, "a", "LVC")
    assert (missed.dice, missed.hd95_mm, missed.hd95_voxels) == (0, 0, 0)
    assert (nowhere.dice, nowhere.hd95_mm, nowhere.hd95_voxels) == (1, 0, 0)
    assert evaluation.structures["LVC"]["dice"].cases == 2


def test_ignored_voxels_count_for_nothing(folders):
    protocol = Protocol("ignoring", {"first": (1,)}, unscored_labels=(2,), ignore_label=3)
    labels, predictions = blocks(0), blocks(10)
    labels[6:] = 3
    write(folders / "labels" / "a.nii.gz", labels)
    score = score_of(evaluate(folders, protocol=protocol), "a", "first")
    ours, theirs = (predictions == 1) & (labels != 3), labels == 1
    assert score.dice == dice(ours, theirs)
    assert score.hd95_voxels == pytest.approx(hausdorff95(ours, theirs))
    assert score.prediction_voxels == ours.sum() < (predictions == 1).sum()


def test_the_labels_of_a_dataset(tmp_path):
    """Named as its cases, not as its files; cases without a prediction are left out."""
    dataset = write_btcv(tmp_path / "RawData", numbers=(1, 2, 21))
    predictions = tmp_path / "predictions"
    predictions.mkdir()
    for name, label in (("abdomen_001", "label0001"), ("abdomen_021", "label0021")):
        shutil.copy(dataset / "Training" / "label" / f"{label}.nii.gz", predictions / f"{name}.nii.gz")
    found = evaluate_folders(predictions, dataset, tmp_path / "scores", progress=False)
    assert found.cases == ("abdomen_001", "abdomen_021")
    assert list(found.structures)[:2] == ["spleen", "right kidney"]
    assert found.structures["spleen"]["dice"].mean == 1
    published = evaluate_folders(
        predictions, dataset, tmp_path / "published", protocol="synapse8", progress=False
    )
    assert len(published.structures) == 8
    shutil.copy(predictions / "abdomen_001.nii.gz", predictions / "abdomen_099.nii.gz")
    with pytest.raises(ValueError, match=r"predictions in .* must be of cases of .*, got abdomen_099"):
        evaluate_folders(predictions, dataset, tmp_path / "scores", progress=False)
    named = evaluate_folders(predictions, dataset, tmp_path / "scores", cases=["abdomen_001"], progress=False)
    assert named.cases == ("abdomen_001",)


def test_default_protocol(folders):
    evaluation = evaluate(folders, protocol="default")
    assert evaluation.protocol.classes == {"label 1": (1,), "label 2": (2,)}
    predicted = {"labels": {"background": 0, "inside": 1, "edge": 2}}
    (folders / "predictions" / "dataset.json").write_text(json.dumps(predicted))
    evaluation = evaluate(folders, protocol="default")
    assert evaluation.protocol.classes == {"inside": (1,), "edge": (2,)}
    (folders / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "core": 1, "rim": 2}}))
    evaluation = evaluate(folders, protocol="default")
    assert evaluation.protocol.classes == {"core": (1,), "rim": (2,)}


def said_by(caplog, level):
    return [record.getMessage() for record in caplog.records if record.levelno == level]


def test_structures_without_a_reference_are_named(folders, caplog):
    """The numbers stay those of the convention."""
    write(folders / "predictions" / "a.nii.gz", np.zeros(SHAPE))
    evaluation = evaluate(folders, protocol="acdc")
    assert evaluation.structures["LVC"]["dice"].mean == 1
    assert said_by(caplog, logging.WARNING) == [
        "no reference has these structures of protocol acdc: LVC; their Dice is 1 where a prediction lacks "
        "them too, and counts in the mean; check `evaluate --protocol`"
    ]
    caplog.clear()
    evaluate(folders, protocol=Protocol("mine", {"first": (1,), "x": (3,), "y": (4, 5)}, (2,)))
    assert said_by(caplog, logging.WARNING) == [
        "no reference has these structures of protocol mine: x, y; they are left out of the mean where a "
        "prediction lacks them too"
    ]
    caplog.clear()
    evaluate(folders)
    assert not caplog.records


@pytest.mark.parametrize("whole", [True, False])
def test_values_that_the_dataset_does_not_declare_are_named(tmp_path, caplog, whole):
    dataset = write_decathlon(tmp_path / "D1")
    labels = dataset if whole else dataset / "labelsTr"

    def warnings(protocol):
        caplog.clear()
        evaluate_folders(dataset / "labelsTr", labels, tmp_path / "scores", protocol=protocol, progress=False)
        return said_by(caplog, logging.WARNING)

    undeclared, absent = warnings("synapse8")
    assert undeclared == (
        f"protocol synapse8 scores label values that {dataset / 'dataset.json'} does not declare "
        "(3, 4, 6, 7, 8, 11); check `evaluate --protocol`"
    )
    assert "synapse8: left kidney, gallbladder, liver, stomach, aorta, pancreas; their Dice is 1" in absent
    assert warnings("default") == []
    change_json(
        dataset / "dataset.json", labels={"0": "background", "1": "left", "2": "right", "3": "middle"}
    )
    assert len(warnings("acdc")) == 1  # declared, but in no reference


def test_a_structure_that_is_only_predicted_has_no_reference(folders, caplog):
    labels = blocks(10)
    labels[0, 0, 0] = 3
    write(folders / "predictions" / "a.nii.gz", labels)
    evaluate(folders, protocol=Protocol("mine", {"both": (1, 2), "x": (3,)}))
    (said,) = said_by(caplog, logging.WARNING)
    assert said.startswith("no reference has these structures of protocol mine: x; ")


def test_folds_together_keep_the_order_of_structures(folders):
    for fold, case in enumerate("ba"):
        evaluate_folders(
            folders / "predictions",
            folders / "labels",
            folders / f"scores_{fold}",
            protocol=TWO,
            cases=[case],
            progress=False,
        )
    found = evaluate_together([folders / f"scores_{fold}" for fold in (0, 1)], folders / "scores")
    assert found.scores == evaluate(folders).scores


def test_an_unreadable_dataset_json_keeps_no_protocol_from_scoring(folders):
    (folders / "dataset.json").write_text("{}")
    assert evaluate(folders).cases == ("a", "b")
    with pytest.raises(ValueError, match=r"dataset\.json: labels must be a table"):
        evaluate(folders, protocol="default")


def test_cases_of_a_dataset_without_a_prediction_are_counted(tmp_path, caplog):
    dataset, predictions = write_decathlon(tmp_path / "D1"), tmp_path / "predictions"
    predictions.mkdir()

    def said(**options):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            evaluate_folders(predictions, dataset, tmp_path / "scores", progress=False, **options)
        return said_by(caplog, logging.INFO)

    for number, counted in (
        (1, "1 of the 5 labelled cases of {} is"),
        (0, "2 of the 5 labelled cases of {} are"),
    ):
        shutil.copy(dataset / "labelsTr" / f"case_{number}.nii.gz", predictions)
        assert said() == [f"{counted.format(dataset)} predicted; the rest is left out"]
    assert said(cases=["case_1"]) == []
    shutil.copytree(dataset / "labelsTr", predictions, dirs_exist_ok=True)
    assert said() == []


def test_volumes_are_written_without_rounding_errors(tmp_path):
    for folder in ("labels", "predictions"):
        write(tmp_path / folder / "a.nii.gz", np.ones(SHAPE), spacing=(0.8, 0.8, 2.0))
    score = score_of(evaluate(tmp_path), "a", "first")
    assert score.reference_ml == score.prediction_ml == 1.0752
    with (tmp_path / "scores" / "scores.csv").open() as file:
        assert next(csv.DictReader(file))["reference_ml"] == "1.0752"


def test_files(folders):
    write(folders / "labels" / "c.nii.gz", np.zeros(SHAPE))
    write(folders / "predictions" / "c.nii.gz", np.zeros(SHAPE))
    evaluation = evaluate(folders)
    with (folders / "scores" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert float(rows[1]["hd95_mm"]) == evaluation.scores[1].hd95_mm
    assert (rows[4]["case"], rows[4]["dice"], rows[4]["reference_voxels"]) == ("c", "", "0")
    summary = json.loads((folders / "scores" / "summary.json").read_text())
    assert summary["structures"]["both"]["nsd"] == dataclasses.asdict(evaluation.structures["both"]["nsd"])
    assert summary["scores"][4]["dice"] is None
    assert summary["protocol"]["classes"] == {"first": [1], "both": [1, 2]}
    markdown = (folders / "scores" / "summary.md").read_text()
    first = evaluation.structures["first"]["dice"]
    header = "| structure | Dice | HD95 (mm) | HD95 (voxels) | NSD at 2 mm | cases |\n"
    assert (
        f"2 mm | cases |\n| --- | ---: | ---: | ---: | ---: | ---: |\n| first | {first.mean:.4f} ± "
        in markdown
    )
    assert header in markdown
    assert f"| **mean** | {evaluation.mean['dice']:.4f} |" in markdown
    assert "In only one: Dice 0, HD95 the image's diagonal." in markdown
    latex = (folders / "scores" / "summary.tex").read_text()
    assert rf"    first & {first.mean:.4f} $\pm$ {first.sd:.4f} & " in latex
    assert rf"\textbf{{mean}} & {evaluation.mean['dice']:.4f} & " in latex
    assert sorted(p.name for p in (folders / "scores").iterdir()) == [
        "scores.csv",
        "summary.json",
        "summary.md",
        "summary.tex",
    ]


def test_files_are_read_back(folders):
    write(folders / "labels" / "c.nii.gz", np.zeros(SHAPE))
    write(folders / "predictions" / "c.nii.gz", np.zeros(SHAPE))
    for protocol in (TWO, "acdc"):
        evaluation = evaluate(folders, protocol=protocol)
        assert repr(read_evaluation(folders / "scores")) == repr(evaluation)  # NaN is not equal to NaN
    for content in ('{"protocol": {}}', '{"protocol": {}, "scores": [1]}', "[]"):
        (folders / "scores" / "summary.json").write_text(content)
        with pytest.raises(
            ValueError, match=r"summary\.json must hold (the )?scores that `jaxmamba3d evaluate` w"
        ):
            read_evaluation(folders / "scores")
    with pytest.raises(FileNotFoundError, match=r"labels/summary\.json: no such file; it should hold"):
        read_evaluation(folders / "labels")
    whole = dataclasses.asdict(evaluation)
    (folders / "scores" / "summary.json").write_text(
        json.dumps(without_nan(whole | {"scores": whole["scores"][1:]}))
    )
    first = evaluation.scores[0]
    with pytest.raises(ValueError, match=f"no score of {first.case}'s {first.structure}"):
        read_evaluation(folders / "scores")


def test_a_dataset_with_regions_and_voxels_to_ignore(folders):
    """The default protocol is the dataset's: its regions, and nothing where the label says ignore."""
    names = {"background": 0, "whole": [1, 2], "core": 1, "ignore": 3}
    content = {"labels": names, "regions_class_order": [2, 1]}
    (folders / "dataset.json").write_text(json.dumps(content))
    labels, predictions = blocks(0), blocks(10)
    labels[:, :4] = 3
    predictions[:, :, 6] = 3  # a prediction may hold it too; it is none of the regions
    write(folders / "labels" / "a.nii.gz", labels)
    write(folders / "predictions" / "a.nii.gz", predictions)
    evaluation = evaluate(folders, protocol="default")
    assert list(evaluation.structures) == ["whole", "core"]
    counted = labels != 3
    for structure, values in (("whole", (1, 2)), ("core", (1,))):
        score = score_of(evaluation, "a", structure)
        ours, theirs = np.isin(predictions, values) & counted, np.isin(labels, values)
        assert 0 < score.dice < 1
        assert score.dice == dice(ours, theirs)
        assert score.hd95_mm == pytest.approx(hausdorff95(ours, theirs, SPACING), rel=1e-6)
    assert repr(read_evaluation(folders / "scores")) == repr(evaluation)


def test_headline_unit_comes_first(folders):
    evaluate(folders, protocol=dataclasses.replace(TWO, hd95_unit="voxels", nsd_tolerance_mm=1.5))
    markdown = (folders / "scores" / "summary.md").read_text()
    assert "| Dice | HD95 (voxels) | HD95 (mm) | NSD at 1.5 mm |" in markdown


def test_cases_can_be_chosen(folders):
    write(folders / "labels" / "c.nii.gz", blocks(2))
    assert evaluate(folders, cases=["b"]).cases == ("b",)
    with pytest.raises(ValueError, match=r"d: .*predictions/d\.nii\.gz: no such file"):
        evaluate(folders, cases=["b", "d"])


def test_floating_point_and_hidden_files_are_read(folders):
    write(folders / "predictions" / "a.nii.gz", blocks(0), dtype=np.float32)
    (folders / "labels" / "._a.nii.gz").write_bytes(b"left by macOS")
    assert score_of(evaluate(folders), "a", "both").dice == 1


def test_headers_that_round_differently_match(folders):
    affine = np.diag([*SPACING, 1]) + 1e-4
    write(folders / "predictions" / "a.nii.gz", blocks(0), affine)
    assert score_of(evaluate(folders), "a", "both").dice == 1


def test_all_bad_pairs_are_named_at_once(folders):
    labels, predictions = folders / "labels", folders / "predictions"
    for case in "cdefg":
        write(labels / f"{case}.nii.gz", blocks(3))
    write(predictions / "d.nii.gz", blocks(3)[:-1])
    write(predictions / "e.nii.gz", blocks(3), np.diag([-0.8, 1, 3, 1]))
    (predictions / "f.nii.gz").write_bytes(b"no NIfTI")
    write(predictions / "g.nii.gz", np.stack([blocks(3)] * 2, axis=-1))
    write(predictions / "h.nii.gz", blocks(3))
    with pytest.raises(ValueError) as error:
        evaluate(folders)
    message = str(error.value)
    advice = "fix them, or name those to score (`evaluate --cases`)"
    assert message.startswith(f"6 of 8 cases cannot be scored; {advice}:\n  c: ")
    assert "predictions/c.nii.gz: no such file\n" in message
    assert "d: the prediction has shape [11, 10, 7], its label [12, 10, 7]" in message
    assert "e: the affines of prediction and label place voxels up to 17.6 mm apart" in message
    assert "predictions/f.nii.gz must be a whole NIfTI file" in message
    assert "predictions/g.nii.gz must be 3D because it holds labels, got 2 channels" in message
    assert "labels/h.nii.gz: no such file" in message
    assert not (folders / "scores").exists()


def test_bad_contents_are_named_at_once(folders):
    labels, predictions = folders / "labels", folders / "predictions"
    for case in "cde":
        write(labels / f"{case}.nii.gz", blocks(3))
    write(predictions / "c.nii.gz", blocks(3) * 4)
    write(predictions / "d.nii.gz", blocks(3) * 0.5, dtype=np.float32)
    write(predictions / "e.nii.gz", -blocks(3).astype(np.int16), dtype=np.int16)
    noise = np.random.default_rng(0).integers(0, 3, (30, 30, 30))
    write(labels / "f.nii.gz", noise)
    write(predictions / "f.nii.gz", noise)
    whole = (predictions / "f.nii.gz").read_bytes()
    (predictions / "f.nii.gz").write_bytes(whole[: len(whole) * 3 // 4])  # noise: the cut spares the header
    with pytest.raises(ValueError) as error:
        evaluate(folders)
    message = str(error.value)
    assert message.startswith(
        "4 of 6 cases cannot be scored; fix them, or name those to score (`evaluate --cases`):"
    )
    assert "c.nii.gz: labels [4, 8], which protocol two does not declare" in message
    assert "d.nii.gz must hold whole numbers from -32768 to 32767 as labels, got 0.5" in message
    assert "e.nii.gz must be of labels from 0, got -2" in message
    assert "f.nii.gz must be a whole NIfTI file" in message
    assert not (folders / "scores").exists()


def test_empty_and_missing_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="predictions: no such folder"):
        evaluate(tmp_path)
    (tmp_path / "predictions").mkdir()
    (tmp_path / "labels").mkdir()
    with pytest.raises(ValueError, match=r"no \.nii\.gz files to compare"):
        evaluate(tmp_path)


def test_evaluation_does_not_need_jax():
    code = "import sys, jaxmamba3d.evaluation; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("spacing", [(0.8, 0.8, 3.0), (1.0, 2.0, 2.0)])
def test_voxel_distances_of_slices_and_volumes_in_ml(tmp_path, spacing):
    masks = {}
    for folder, x, z in (("labels", 0, 0), ("predictions", 5, 3)):
        mask = np.zeros((12, 10, 9), np.uint8)
        mask[x : x + 6, 1:7, z : z + 5] = 1
        masks[folder] = mask > 0
        (tmp_path / folder).mkdir()
        nibabel.save(nibabel.Nifti1Image(mask, np.diag([*spacing, 1])), tmp_path / folder / "a.nii.gz")
    found = evaluate_folders(
        tmp_path / "predictions",
        tmp_path / "labels",
        tmp_path / "scores",
        protocol=Protocol("one", {"x": (1,)}),
        progress=False,
    )
    (score,) = found.scores
    ours, theirs = masks["predictions"], masks["labels"]
    assert score.hd95_voxels == pytest.approx(hausdorff95(ours, theirs))
    assert score.hd95_mm == pytest.approx(hausdorff95(ours, theirs, spacing), rel=1e-6)
    ml = math.prod(spacing) / 1000
    assert (score.reference_ml, score.prediction_ml) == pytest.approx(
        (theirs.sum() * ml, ours.sum() * ml), rel=1e-6
    )
