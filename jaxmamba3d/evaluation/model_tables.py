"""Tables of one model's scores: by structure, and of its cases from the worst on."""

import math
from collections.abc import Mapping

from jaxmamba3d.evaluation.comparison import MEAN, row_of
from jaxmamba3d.evaluation.protocols import Protocol
from jaxmamba3d.evaluation.scored_models import ScoredModel
from jaxmamba3d.evaluation.summary_files import DIGITS, hd95_columns
from jaxmamba3d.evaluation.tables import Column, Number, Table, Words


def quoted_metrics(protocol: Protocol) -> dict[str, str]:
    """Metric -> title of what is quoted under a protocol: Dice, HD95 in its unit, NSD."""
    hd95, title = next(iter(hd95_columns(protocol).items()))
    return {"dice": "Dice", hd95: title, "nsd": f"NSD at {protocol.nsd_tolerance_mm:g} mm"}


def structures_table(columns: Mapping[Column, tuple[ScoredModel, str]]) -> Table:
    """A row per structure, and their mean as in `compare_models`.

    Args:
        columns: what each column shows, a metric of a model; the models are scored under one protocol.
    """
    numbers = [
        {name: number for (name, _), number in row_of(model, (metric,)).items()}
        for model, metric in columns.values()
    ]
    structures = list(next(iter(columns.values()))[0].protocol.classes)
    rows = [
        [Words(name, bold=name == MEAN), *(column[name] for column in numbers)]
        for name in (*structures, MEAN)
    ]
    return Table([Column("structure"), *columns], rows)


def cases_table(model: ScoredModel) -> Table:
    """A row per case, the worst mean Dice first, those without any last; Dice and HD95 of each structure."""
    hd95, title = next(iter(hd95_columns(model.protocol).items()))
    columns = [Column("case"), Column("mean Dice")]
    for structure in model.protocol.classes:
        columns += [Column("Dice", structure), Column(title, structure)]
    scores = {(score.case, score.structure): score for score in model.scores}
    means = {case: model.mean_dice(case) for case in sorted(model.cases)}
    rows = []
    for case in sorted(means, key=lambda case: (math.isnan(means[case]), means[case])):
        row = [Words(case), Number(means[case], digits=DIGITS["dice"])]
        for structure in model.protocol.classes:
            score = scores[case, structure]
            row += [Number(getattr(score, metric), digits=DIGITS[metric]) for metric in ("dice", hd95)]
        rows.append(row)
    return Table(columns, rows)
