"""Tables of one model's scores."""

import math

import pytest

from jaxmamba3d.evaluation.model_tables import cases_table, quoted_metrics, structures_table
from jaxmamba3d.evaluation.protocols import Protocol
from jaxmamba3d.evaluation.scored_models import ScoredModel
from jaxmamba3d.evaluation.scoring import Score
from jaxmamba3d.evaluation.summary import summarize
from jaxmamba3d.evaluation.tables import Column

PROTOCOL = Protocol("two", {"a": (1,), "b": (2,)}, hd95_unit="voxels", nsd_tolerance_mm=1.5)
FOLDS = ({"x": (0.5, 0.9), "y": (0.7, math.nan)}, {"z": (math.nan, math.nan), "w": (0.2, 0.4)})


def score(case, structure, dice):
    return Score(case, structure, dice, 10 * dice, 5 * dice, dice / 2, 1, 1, 1.0, 1.0)


@pytest.fixture
def model(tmp_path):
    evaluations = tuple(
        summarize([score(case, "ab"[i], dice[i]) for case, dice in fold.items() for i in (0, 1)], PROTOCOL)
        for fold in FOLDS
    )
    return ScoredModel("model", evaluations, (tmp_path, tmp_path))


def test_what_is_quoted_goes_by_the_protocol(model):
    titles = {"dice": "Dice", "hd95_voxels": "HD95 (voxels)", "nsd": "NSD at 1.5 mm"}
    assert quoted_metrics(model.protocol) == titles


def test_structures_by_fold_and_together(model):
    first, second = model.folds
    columns = {Column("fold 0"): first, Column("fold 1"): second, Column("all"): model}
    table = structures_table({column: (found, "dice") for column, found in columns.items()})
    assert table.markdown().splitlines()[2:] == [
        "| a | 0.6000 ± 0.1414 | 0.2000 | 0.4667 ± 0.2517 (± 0.2828) |",
        "| b | 0.9000 | 0.4000 | 0.6500 ± 0.3536 (± 0.3536) |",
        "| **mean** | 0.7500 ± 0.0000 | 0.3000 | 0.5583 ± 0.2309 (± 0.3182) |",
    ]


def test_cases_from_the_worst_on(model):
    lines = cases_table(model).markdown().splitlines()
    assert lines[0] == "| case | mean Dice | a Dice | a HD95 (voxels) | b Dice | b HD95 (voxels) |"
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| w", "| x", "| y", "| z"]
    assert lines[2] == "| w | 0.3000 | 0.2000 | 1.00 | 0.4000 | 2.00 |"
    assert lines[4:] == ["| y | 0.7000 | 0.7000 | 3.50 | - | - |", "| z | - | - | - | - | - |"]
