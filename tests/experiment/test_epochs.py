"""metrics.csv as others than the training read it."""

import math

import pytest

from jaxmamba3d.experiment.epochs import read_epochs

TABLE = """\
epoch,seconds,train_loss,pseudo_dice left,pseudo_dice mean,images_a_second,note
0,20.5,1.5,0.1,0.1,8,
1,10,1.25,nan,nan,9,slow
2,10.5,1.0,0.5,0.5,,
3,11,0.75,0.5,0.5,10,
"""


def test_columns_are_found_by_name(tmp_path):
    (tmp_path / "metrics.csv").write_text(TABLE)
    epochs = read_epochs(tmp_path)
    assert epochs.columns == (
        "seconds",
        "train_loss",
        "pseudo_dice left",
        "pseudo_dice mean",
        "images_a_second",
    )
    assert (epochs.done, epochs.seconds) == (4, 52)
    assert (epochs.best, epochs.best_score) == (4, 0.5)  # by the moving average, as the best checkpoint
    assert epochs.rows[4]["images_a_second"] == 10
    assert math.isnan(epochs.rows[3]["images_a_second"])


def test_one_lucky_epoch_is_not_the_best(tmp_path):
    dice = (0.8, 0.9, 0.7, 0.86, 0.87, 0.88)
    rows = "".join(f"{epoch},{value}\n" for epoch, value in enumerate(dice))
    (tmp_path / "metrics.csv").write_text(f"epoch,pseudo_dice mean\n{rows}")
    assert read_epochs(tmp_path).best == 6


def test_tables_of_little(tmp_path):
    assert read_epochs(tmp_path) is None
    (tmp_path / "metrics.csv").write_text("epoch,seconds\n")
    assert read_epochs(tmp_path) is None
    (tmp_path / "metrics.csv").write_text("epoch,train_loss\n0,1.5\n")
    epochs = read_epochs(tmp_path)
    assert epochs.best is None
    assert math.isnan(epochs.best_score)
    assert math.isnan(epochs.seconds)


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "epoch,b\nx,2\n"])
def test_another_table_is_refused(tmp_path, text):
    (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(ValueError, match=r"metrics\.csv must hold epochs as training writes them, got"):
        read_epochs(tmp_path)
