"""Table, TensorBoard events and picture of a training run, across interruptions."""

import csv
import dataclasses
import errno
import math
import struct
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from jaxmamba3d.experiment.epochs import read_epochs
from jaxmamba3d.labels import Labels
from jaxmamba3d.training.epoch import Sample
from jaxmamba3d.training.report import EpochMetrics, MetricsLog, moving_score, overlays_of

LABELS = Labels({"background": (0,), "liver": (1,), "lesion": (2,)})


def metrics_of(epoch, run=1):
    """Numbers that name their epoch and run; the lesion is absent in odd epochs."""
    dice = (epoch / 10, math.nan if epoch % 2 else 0.5)
    return EpochMetrics(
        epoch=epoch,
        learning_rate=3e-4 / (epoch + 1),
        gradient_norm=0.5 * epoch,
        train_loss=float(run),
        validation_loss=-epoch / 7,
        skipped_steps=epoch,
        pseudo_dice=dice,
        seconds=2.5,
        patches_per_second=80.0,
        input_wait=0.25,
        memory_gib=math.nan,
    )


def read_table(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read_events(folder):
    """All events in the order in which TensorBoard reads the files; records are length, crc, data, crc."""
    events = []
    for path in sorted((folder / "tensorboard").iterdir()):
        data, start = path.read_bytes(), 0
        while start < len(data):
            (length,) = struct.unpack_from("<Q", data, start)
            events.append(Event.FromString(data[start + 12 : start + 12 + length]))
            start += length + 16
    return events


def visible_scalars(events):
    """tag -> {step: value}, with what each session's start purges taken away, as TensorBoard does."""
    scalars = {}
    for event in events:
        if event.session_log.status == SessionLog.START:
            for points in scalars.values():
                for step in [step for step in points if step >= event.step]:
                    del points[step]
        for value in event.summary.value:
            assert event.step not in scalars.setdefault(value.tag, {})
            scalars[value.tag][event.step] = value.simple_value
    return scalars


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """Four epochs, of which the last two were lost with their checkpoint, then three more from epoch 2."""
    folder = tmp_path_factory.mktemp("run") / "fold_0"
    first = MetricsLog(folder, LABELS)
    for epoch in range(4):
        first.append(metrics_of(epoch))
    first.close()
    second = MetricsLog(folder, LABELS, start_epoch=2)
    for epoch in range(2, 5):
        second.append(metrics_of(epoch, run=2))
    second.close()
    return folder


def test_the_table_holds_every_epoch_once(interrupted):
    rows = read_table(interrupted)
    assert [int(row["epoch"]) for row in rows] == [0, 1, 2, 3, 4]
    assert [float(row["train_loss"]) for row in rows] == [1, 1, 2, 2, 2]
    for epoch, row in enumerate(rows):
        assert float(row["seconds"]) == 2.5
        assert float(row["learning_rate"]) == pytest.approx(3e-4 / (epoch + 1), rel=1e-7)
        assert float(row["validation_loss"]) == pytest.approx(-epoch / 7, abs=1e-6)
        assert float(row["pseudo_dice liver"]) == pytest.approx(epoch / 10, rel=1e-7)  # float32, read back
    assert [row["pseudo_dice lesion"] for row in rows[:2]] == ["0.5", "nan"]
    assert [float(row["pseudo_dice mean"]) for row in rows[:3]] == pytest.approx([0.25, 0.1, 0.35])


def test_tensorboard_shows_every_epoch_once(interrupted):
    scalars = visible_scalars(read_events(interrupted))
    assert scalars["loss/train"] == {0: 1, 1: 1, 2: 2, 3: 2, 4: 2}
    assert scalars["learning_rate"] == pytest.approx({epoch: 3e-4 / (epoch + 1) for epoch in range(5)})
    assert scalars["pseudo_dice/lesion"] == {0: 0.5, 2: 0.5, 4: 0.5}
    assert scalars["pseudo_dice/mean"] == pytest.approx({0: 0.25, 1: 0.1, 2: 0.35, 3: 0.3, 4: 0.45})


def test_each_epoch_is_on_disk_at_once(tmp_path):
    """A run that is killed keeps what it reported, and leaves no temporary files."""
    log = MetricsLog(tmp_path, LABELS)
    log.append(metrics_of(0))
    assert len(read_table(tmp_path)) == 1
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"pseudo_dice/mean" in events.read_bytes()
    assert visible_scalars(read_events(tmp_path))["loss/validation"] == {0: 0}
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.csv", "curves.png", "tensorboard"}
    log.close()


def test_the_time_left_goes_by_the_epoch_and_not_by_the_table(tmp_path, caplog):
    """Which begins again where it was lost, and says so."""
    log = MetricsLog(tmp_path, LABELS, start_epoch=7)
    assert "metrics.csv lacks 7 of the 7 finished epochs" in caplog.text
    log.append(metrics_of(7))
    log.close()
    assert log.seconds_left(10) == 2 * 2.5


def test_the_time_left_goes_by_the_latest_ten_epochs(tmp_path, monkeypatch):
    monkeypatch.setattr(MetricsLog, "_draw", lambda self: None)
    log = MetricsLog(tmp_path, LABELS)
    for epoch in range(12):
        log.append(dataclasses.replace(metrics_of(epoch), seconds=1000.0 if epoch < 2 else epoch))
    log.close()
    assert log.seconds_left(14) == pytest.approx(2 * np.mean(range(2, 12)))


def test_the_table_keeps_float32_to_the_bit(tmp_path):
    rate, loss = (float(np.float32(value)) for value in (1.2345678e-4, 0.123456789))
    log = MetricsLog(tmp_path, LABELS)
    log.append(dataclasses.replace(metrics_of(0), learning_rate=rate, train_loss=loss))
    log.close()
    (row,) = read_table(tmp_path)
    assert [float(np.float32(row[name])) for name in ("learning_rate", "train_loss")] == [rate, loss]


def test_the_average_by_which_the_best_epoch_is_chosen():
    scores = [0.5]
    for dice in (0.7, math.nan, 0.7):
        scores.append(moving_score(scores[-1], dice))
    assert scores == pytest.approx([0.5, 0.52, 0.468, 0.4912])
    assert moving_score(None, 0.3) == 0.3


def test_the_table_tells_the_best_epoch_as_the_training_does(tmp_path):
    """Also of epochs that differ by less than a millionth."""
    log = MetricsLog(tmp_path, LABELS)
    for epoch in range(4):
        dice = (float(np.float32(0.8123451 + epoch * 1e-7)),) * 2
        log.append(dataclasses.replace(metrics_of(epoch), pseudo_dice=dice))
    log.close()
    assert read_epochs(tmp_path).best == 4


def test_a_failed_write_leaves_the_old_table(tmp_path, monkeypatch):
    log = MetricsLog(tmp_path, LABELS)
    log.append(metrics_of(0))
    before = (tmp_path / "metrics.csv").read_bytes()

    def half(path, text, **_):
        path.write_bytes(text.encode()[: len(text) // 2])
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.write_text", half)
    with pytest.raises(OSError, match="disk full"):
        log.append(metrics_of(1))
    assert (tmp_path / "metrics.csv").read_bytes() == before
    log.close()


def test_a_failed_write_for_tensorboard_is_said(tmp_path, monkeypatch):
    """In time: a thread of its own would die of it, and the training wait for that thread for ever."""
    log = MetricsLog(tmp_path, LABELS)
    with monkeypatch.context() as patch:
        patch.setattr(EventsWriter, "flush", Mock(side_effect=OSError("stale file handle")))
        with pytest.raises(OSError, match="stale file handle"):
            log.append(metrics_of(0))
    log.append(metrics_of(1))
    log.close()
    assert visible_scalars(read_events(tmp_path))["loss/train"] == {0: 1, 1: 1}


def test_a_row_that_was_cut_off_is_left_out(tmp_path, caplog):
    log = MetricsLog(tmp_path, LABELS)
    for epoch in range(2):
        log.append(metrics_of(epoch))
    log.close()
    path = tmp_path / "metrics.csv"
    path.write_text(path.read_text()[:-3])
    log = MetricsLog(tmp_path, LABELS, start_epoch=2)
    assert "metrics.csv lacks 1 of the 2 finished epochs" in caplog.text
    log.append(metrics_of(2))
    log.close()
    assert [row["epoch"] for row in read_table(tmp_path)] == ["0", "2"]


def test_a_table_that_cannot_be_read_is_named(tmp_path):
    log = MetricsLog(tmp_path, LABELS)
    log.append(metrics_of(0))
    log.close()
    path = tmp_path / "metrics.csv"
    path.write_text(path.read_text()[:-20] + "\n")
    with pytest.raises(ValueError, match=r"metrics\.csv must be the table that this training wrote"):
        MetricsLog(tmp_path, LABELS, start_epoch=1)


def test_a_full_disk_is_said_with_the_folder(tmp_path, monkeypatch):
    log = MetricsLog(tmp_path, LABELS)
    full = Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    with monkeypatch.context() as patch:
        patch.setattr(EventsWriter, "write_event", full)
        with pytest.raises(OSError, match=rf"{tmp_path}/tensorboard could not be written: No space left"):
            log.append(metrics_of(0))
    log.close()


def test_a_resumed_table_is_an_unbroken_one(tmp_path):
    """Also where nine digits of the classes' Dice, read back, have a mean that is rounded otherwise."""
    first = dataclasses.replace(metrics_of(0), pseudo_dice=(0.565137505531311, 0.7439734935760498))
    whole, interrupted = (MetricsLog(tmp_path / name, LABELS) for name in ("whole", "resumed"))
    for log in (whole, interrupted):
        log.append(first)
    interrupted.close()
    resumed = MetricsLog(tmp_path / "resumed", LABELS, start_epoch=1)
    for log in (whole, resumed):
        log.append(metrics_of(1))
        log.close()
    tables = [(tmp_path / name / "metrics.csv").read_text() for name in ("whole", "resumed")]
    assert tables[0] == tables[1]


def test_the_picture_shows_a_curve_for_each_class(interrupted):
    with Image.open(interrupted / "curves.png") as picture:
        assert picture.width > 2 * picture.height > 500
        colours = {colour for _, colour in picture.convert("RGB").getcolors(maxcolors=1 << 20)}
    assert {(31, 119, 180), (255, 127, 14), (128, 128, 128)} <= colours


def test_patches_are_shown(tmp_path):
    """As a file and in TensorBoard: the patch with foreground first, its case's name with it."""
    label = np.zeros((2, 4, 16, 16), np.int16)
    label[1, 2, 4:10, 4:10] = 1
    label[0] = -1
    image = np.random.default_rng(0).normal(label, 0.2)[..., None].astype(np.float32)
    sample = Sample(image, label, np.maximum(label, 0) * 2, np.array([1, 0]))
    overlays = overlays_of(sample, ["a", "b"], (3.0, 1.0, 1.0), LABELS, upside_down=False)
    assert [overlay.name for overlay in overlays] == ["a", "b"]
    assert overlays[1].truth.min() == 0
    assert {overlay.extent for overlay in overlays} == {"patch"}
    turned = overlays_of(sample, ["a", "b"], (3.0, 1.0, 1.0), LABELS, upside_down=True)
    for name in ("image", "truth", "prediction"):
        for one, other in zip(overlays, turned, strict=True):
            np.testing.assert_array_equal(getattr(other, name), np.flip(getattr(one, name), 1))
    log = MetricsLog(tmp_path, LABELS)
    log.append(metrics_of(0))
    log.show(overlays)
    log.close()
    with Image.open(tmp_path / "patches.png") as picture:
        size = picture.size
    (shown,) = [
        value for event in read_events(tmp_path) for value in event.summary.value if value.tag == "patches"
    ]
    assert (shown.image.width, shown.image.height) == size


@pytest.mark.parametrize(
    ("done", "epochs", "shown"),
    [
        (1, 3, True),
        (3, 3, True),
        (19, 1000, False),
        (20, 1000, True),
        (77, 77, True),
        (99, 150, True),
        (99, 101, False),
        (101, 101, True),
    ],
)
def test_about_fifty_epochs_show_patches(tmp_path, done, epochs, shown):
    log = MetricsLog(tmp_path, LABELS)
    log.append(metrics_of(done - 1))
    log.close()
    assert log.wants_a_picture(epochs) == shown


def test_mean_of_no_class_is_nan():
    absent = dataclasses.replace(metrics_of(0), pseudo_dice=(math.nan, math.nan))
    assert math.isnan(absent.mean_pseudo_dice)
