"""What a trained run predicts, and where it stops."""

import dataclasses
import json
import logging
import shutil

import jax
import nibabel
import numpy as np
import pytest
from small_datasets import AFFINE, image_and_label, write_nifti
from small_runs import EPOCHS, small_config

from jaxmamba3d import experiment
from jaxmamba3d.config import (
    PredictConfig,
)
from jaxmamba3d.data import Case, find_images, write_segmentation
from jaxmamba3d.experiment import prediction
from jaxmamba3d.experiment.training import train
from jaxmamba3d.files import folder_lock, write_json
from jaxmamba3d.inference.finished_cases import FinishedCases
from jaxmamba3d.training import compilation, devices_for


def test_volumes_of_any_size_are_predicted(finished, tmp_path):
    """Smaller than a window, odd, and much longer than wide; at other spacings."""
    run, _ = finished
    for number, (shape, spacing) in enumerate((((5, 7, 3), 1.0), ((30, 9, 17), 0.7), ((13, 13, 13), 2.5))):
        image, _ = image_and_label(number, 2, shape)
        affine = AFFINE @ np.diag([spacing, 1, 1, 1])
        for channel in range(2):
            write_nifti(tmp_path / "in" / f"x{number}_{channel:04d}.nii.gz", image[..., channel], affine)
    cases = find_images(tmp_path / "in", 2)
    for mirroring in (False, True):
        experiment.predict(run, cases, tmp_path / "out", folds=[0], checkpoint="best", mirroring=mirroring)
        for case in cases:
            image, found = (
                nibabel.load(p) for p in (case.images[0], tmp_path / "out" / f"{case.name}.nii.gz")
            )
            assert found.shape == image.shape
            np.testing.assert_allclose(found.affine, image.affine)
            assert set(np.unique(np.asarray(found.dataobj))) <= {0, 1, 2}


def test_images_stored_otherwise_than_those_of_the_training_are_warned_of(finished, tmp_path, caplog):
    run, _ = finished
    assert run.orientations() == ("RAS",)
    image, _ = image_and_label(0, 2, (6, 7, 8))
    for name, signs in (("a", (1, 1, 1, 1)), ("b", (-1, -1, 1, 1))):
        write_nifti(tmp_path / "in" / f"{name}.nii.gz", image, AFFINE @ np.diag(signs))
    experiment.predict(run, find_images(tmp_path / "in", 2), tmp_path / "out", folds=[0])
    assert "the training's images are stored as RAS, but of these 1 as LPS (such as b)" in caplog.text


def test_what_orientations_a_run_of_an_older_version_has_is_not_known(finished, tmp_path):
    run = dataclasses.replace(finished[0], folder=tmp_path)
    assert run.orientations() == ()
    (tmp_path / "orientations.json").write_text("5")
    with pytest.raises(ValueError, match=r"orientations\.json must hold how many .*, got a JSON int"):
        run.orientations()


def test_a_dataset_means_its_cases_in_no_fold(finished, dataset, tmp_path, caplog):
    run, _ = finished
    caplog.set_level(logging.INFO)

    def names(run, folder):
        return [case.name for case in experiment.cases_to_predict(run, folder)]

    everything = [f"case_{n}" for n in range(5)]
    assert names(run, dataset / "imagesTr") == everything
    assert not caplog.text
    assert names(run, dataset) == everything
    assert "all 5 cases of" in caplog.text
    folds = [{"train": ["case_0", "case_4"], "val": ["case_2"]}]
    other = dataclasses.replace(run, folder=tmp_path)
    write_json(tmp_path / "splits_final.json", folds)
    assert names(other, dataset) == ["case_1", "case_3"]
    assert "2 of 5 cases of" in caplog.text
    assert names(other, dataset / "imagesTr") == everything
    (tmp_path / "splits_final.json").unlink()  # as where weights were imported
    assert names(other, dataset) == everything


def test_an_interrupted_prediction_goes_on(finished, tmp_path, monkeypatch):
    run, _ = finished
    images = [write_nifti(tmp_path / f"{n}.nii.gz", image_and_label(n, 2, (6, 7, 8))[0]) for n in range(3)]
    cases = [Case(path.name.removesuffix(".nii.gz"), (path,)) for path in images]
    written, interrupt_at = [], ["1.nii.gz"]

    def write(path, *arguments):
        if path.name in interrupt_at:
            raise KeyboardInterrupt
        write_segmentation(path, *arguments)
        written.append(path.name[0])

    def predict(run, **options):
        written.clear()
        experiment.predict(run, cases, tmp_path / "out", folds=[0], mirroring=False, **options)
        return "".join(written)

    monkeypatch.setattr("jaxmamba3d.inference.predict.write_segmentation", write)
    with pytest.raises(KeyboardInterrupt):
        predict(run)
    interrupt_at.clear()
    assert predict(run) == "12"
    assert predict(run) == ""
    write_nifti(images[1], image_and_label(9, 2, (6, 7, 8))[0])
    assert predict(run) == "1"
    (tmp_path / "out" / "2.nii.gz").unlink()
    assert predict(run) == "2"
    assert predict(run, probabilities=True) == "012"
    assert predict(run) == ""
    changed = dataclasses.replace(run.config, predict=PredictConfig(mirroring=False, tile_step=0.9))
    farther = dataclasses.replace(run, config=changed)
    assert predict(farther) == "012"
    assert predict(farther, probabilities=True) == "012"  # those that are there are of the other windows


def test_cases_that_cannot_be_read_do_not_keep_the_others_waiting(finished, tmp_path):
    """Their headers are as they should be; all are named when the others are done."""
    run, _ = finished
    for number in range(4):
        image, _ = image_and_label(number, 2, (6, 7, 8))
        if number % 2 == 0:
            image[number, 1, 1] = np.nan
        write_nifti(tmp_path / "in" / f"{number}.nii.gz", image)
    cases = find_images(tmp_path / "in", 2)
    message = (
        r"2 of 4 cases are bad and were left out; .*:\n0: .*0\.nii\.gz must .* NaN .*\n2: .*2\.nii\.gz must"
    )
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            experiment.predict(run, cases, tmp_path / "out", folds=[0])
        assert {path.name for path in (tmp_path / "out").glob("*.nii.gz")} == {"1.nii.gz", "3.nii.gz"}


def test_predictions_of_other_weights_are_not_taken_for_finished(tmp_path):
    """Of several writers, too, of which the latest call had fewer."""
    case = Case("a", (write_nifti(tmp_path / "image.nii.gz", np.zeros((3, 3, 3))),))
    (tmp_path / "a.nii.gz").touch()
    FinishedCases(tmp_path, "these", [".nii.gz"], writer=1, writers=2).add(case)

    def remaining(digest):
        finished = FinishedCases(tmp_path, digest, [".nii.gz"])
        finished.begin([case])
        return finished.remaining([case])

    assert remaining("these") == []
    assert remaining("others") == [case]
    assert remaining("these") == [case]


def test_several_writers_remove_their_own_old_records(tmp_path):
    case = Case("a", (write_nifti(tmp_path / "image.nii.gz", np.zeros((3, 3, 3))),))
    for writer in range(3):
        FinishedCases(tmp_path, "these", [], writer=writer, writers=3).add(case)
    FinishedCases(tmp_path, "others", [], writer=0, writers=2).begin([case])
    records = {path.name: json.loads(path.read_text())["digest"] for path in tmp_path.glob("*.json")}
    assert records == {"finished_cases.json": "others", "finished_cases_1.json": "these"}


def test_folds_that_are_not_trained_to_their_end_are_left_out(finished, tmp_path, caplog):
    run, _ = finished
    for fold, epochs in enumerate((EPOCHS, 1)):
        shutil.copytree(run.fold_folder(0), tmp_path / f"fold_{fold}")
        (tmp_path / f"fold_{fold}" / "metrics.csv").unlink()  # the checkpoint tells
        (meta,) = tmp_path.glob(f"fold_{fold}/checkpoints/latest/*/meta/metadata")
        meta.write_text(json.dumps(json.loads(meta.read_text()) | {"epoch": epochs}))
    run = dataclasses.replace(run, folder=tmp_path)
    assert experiment.folds_to_predict(run) == (0,)
    words = f"left out: fold 1, trained for 1 of {EPOCHS} epochs (name it with --folds to take it)"
    assert words in caplog.messages
    shutil.rmtree(tmp_path / "fold_0")
    assert experiment.folds_to_predict(run) == (1,)
    assert f"predicted by fold 1, trained for 1 of {EPOCHS} epochs" in caplog.messages


@pytest.mark.parametrize(
    ("cores", "copies", "used"), [(1, 8, 1), (6, 8, 4), (10, 8, 8), (16, 8, 16), (5, 1, 5), (7, 4, 4)]
)
def test_cores_share_out_the_copies_of_a_window_evenly(monkeypatch, cores, copies, used):
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1] * cores)
    assert len(prediction.prediction_devices(copies)) == used


def test_bad_images_are_named_before_any_is_predicted(finished, tmp_path):
    run, _ = finished
    image, _ = image_and_label(0, 2)
    good = write_nifti(tmp_path / "a.nii.gz", image)
    bad = write_nifti(tmp_path / "b.nii.gz", image[..., :1])
    (text := tmp_path / "c.nii").write_text("no image" * 100)
    cases = [Case("a", (good,)), Case("b", (bad,)), Case("c", (text,))]
    with pytest.raises(ValueError, match="2 of 3 cases are bad") as caught:
        experiment.predict(run, cases, tmp_path / "out", folds=[0])
    _, first, second = str(caught.value).splitlines()
    assert first == f"b: {bad} must be of 2 channels, got 1"
    assert second.startswith(f"c: {text} must be a whole NIfTI file")
    assert not (tmp_path / "out").exists()


def test_images_are_not_overwritten(finished, tmp_path):
    run, _ = finished
    image, _ = image_and_label(0, 2)
    path = write_nifti(tmp_path / "a.nii.gz", image)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="output must be another folder than the images'"):
        experiment.predict(run, [Case("a", (path,))], tmp_path, folds=[0])
    assert path.read_bytes() == before


def test_images_that_are_links_are_not_overwritten(finished, tmp_path):
    run, _ = finished
    path = write_nifti(tmp_path / "images" / "a.nii.gz", image_and_label(0, 2)[0])
    (tmp_path / "links").mkdir()
    (link := tmp_path / "links" / "a.nii.gz").symlink_to(path)
    with pytest.raises(ValueError, match="output must be another folder than the images'"):
        experiment.predict(run, [Case("a", (link,))], tmp_path / "links", folds=[0])


def test_files_that_are_no_predictions_are_not_overwritten(finished, tmp_path, monkeypatch):
    """But what an earlier call had begun is, killed before it noted that it was whole."""
    run, _ = finished
    cases = [Case(n, (write_nifti(tmp_path / f"{n}.nii.gz", image_and_label(0, 2)[0]),)) for n in "ab"]
    out = tmp_path / "out"
    truth = write_nifti(out / "b.nii.gz", image_and_label(0)[1])
    before = truth.read_bytes()

    def predict():
        experiment.predict(run, cases, out, folds=[0], mirroring=False)

    with pytest.raises(ValueError, match=r"without other files that .*, got b\.nii\.gz in .*out"):
        predict()
    assert [path.name for path in out.iterdir()] == ["b.nii.gz"]
    assert truth.read_bytes() == before
    (description := truth.replace(out / "dataset.json")).write_text("{}")
    with pytest.raises(ValueError, match=r"without other files that .*, got dataset\.json in .*out"):
        predict()
    assert description.read_text() == "{}"
    description.unlink()

    def killed(self, case):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FinishedCases, "add", killed)
        with pytest.raises(KeyboardInterrupt):
            predict()
    assert (out / "a.nii.gz").is_file()
    predict()
    assert {path.name for path in out.iterdir()} == {
        "a.nii.gz",
        "b.nii.gz",
        "dataset.json",
        "finished_cases.json",
    }
    (out / "finished_cases.json").write_text("{")  # what is there may be its own
    predict()


def test_segmentations_of_other_images_beside_these_are_warned_of(finished, tmp_path, caplog):
    run, _ = finished
    case = Case("a", (write_nifti(tmp_path / "a.nii.gz", image_and_label(0, 2)[0]),))
    out = tmp_path / "out"
    experiment.predict(run, [case], out, folds=[0], mirroring=False)
    experiment.predict(run, [case], out, folds=[0], mirroring=False)
    assert not caplog.text
    write_nifti(out / "z.nii.gz", image_and_label(0)[1])
    experiment.predict(run, [case], out, folds=[0], mirroring=False)
    assert f"{out} already holds 1 file of other images, made before: z.nii.gz" in caplog.text


def test_nobody_else_predicts_into_the_folder(finished, tmp_path):
    run, _ = finished
    case = Case("a", (write_nifti(tmp_path / "a.nii.gz", image_and_label(0, 2)[0]),))
    with folder_lock(tmp_path / "out", pytest.fail), pytest.raises(ValueError, match="in use; wait for it"):
        experiment.predict(run, [case], tmp_path / "out", folds=[0])


def test_an_output_that_cannot_be_written_is_said_first(dataset, tmp_path):
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(
            ValueError, match=r"output must be a folder that can be written, got .*file, which is no"
        ):
            experiment.run_experiment(small_config(dataset, output))


def test_windows_that_no_device_can_predict_are_refused_before_training(finished, monkeypatch):
    run, _ = finished
    for module in (prediction, compilation):
        monkeypatch.setattr(module, "memory_limit", lambda mesh: 2**16)

    def with_windows(count):
        predict = dataclasses.replace(run.config.predict, window_batch=count)
        return dataclasses.replace(run, config=dataclasses.replace(run.config, predict=predict))

    patches_a_device = run.configuration.batch_size // len(devices_for(run.configuration.batch_size))
    prediction.check_window_batch(with_windows(patches_a_device))  # a training step holds more
    wanted = r"a prediction of 64 windows at once must fit into the device's 0\.1 MiB, got a need of .* MiB"
    with pytest.raises(ValueError, match=wanted + "; lower predict.window_batch"):
        train(with_windows(64), workspace=None, fold=0)
