"""The scores of models, as they are found on disk and checked to be comparable."""

import dataclasses
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from jaxmamba3d.checks import check_that
from jaxmamba3d.evaluation.protocols import Protocol
from jaxmamba3d.evaluation.scoring import Score
from jaxmamba3d.evaluation.summary import Evaluation, statistic
from jaxmamba3d.evaluation.summary_files import SUMMARY, read_evaluation
from jaxmamba3d.wording import first_few

VALIDATION, SCORES, POSTPROCESSED = "validation", "scores", "_postprocessed"
"""Folders of a fold's predictions and of their scores, and what the names of both end with if they are
post-processed."""


@dataclasses.dataclass(frozen=True)
class ScoredModel:
    """A model's scores: one evaluation, or one of each fold.

    Args:
        name: the model's name.
        evaluations: at least one.
        predictions: of each evaluation, the folder where its segmentations lie if nobody moved them.
    """

    name: str
    evaluations: tuple[Evaluation, ...]
    predictions: tuple[Path, ...]

    @property
    def protocol(self) -> Protocol:
        """How it was scored."""
        return self.evaluations[0].protocol

    @property
    def cases(self) -> frozenset[str]:
        """The names of the scored cases of all folds."""
        return frozenset(case for evaluation in self.evaluations for case in evaluation.cases)

    @property
    def scores(self) -> tuple[Score, ...]:
        """Those of all folds."""
        return tuple(score for evaluation in self.evaluations for score in evaluation.scores)

    def mean_dice(self, case: str) -> float:
        """A case's mean Dice over its structures, those left out that have none; NaN without any."""
        return statistic(score.dice for score in self.scores if score.case == case).mean

    @property
    def folds(self) -> tuple["ScoredModel", ...]:
        """Each evaluation as a model of its own."""
        return tuple(
            dataclasses.replace(self, evaluations=(evaluation,), predictions=(folder,))
            for evaluation, folder in zip(self.evaluations, self.predictions, strict=True)
        )

    def only(self, cases: frozenset[str]) -> "ScoredModel":
        """The same model scored on some of the cases; folds without any are left out."""
        kept = [
            (dataclasses.replace(evaluation, scores=scores), folder)
            for evaluation, folder in zip(self.evaluations, self.predictions, strict=True)
            if (scores := tuple(score for score in evaluation.scores if score.case in cases))
        ]
        return dataclasses.replace(
            self, evaluations=tuple(e for e, _ in kept), predictions=tuple(f for _, f in kept)
        )


def find_model(folder: str | Path, name: str | None = None) -> ScoredModel:
    """The scores of a folder that `evaluate` wrote, of predictions scored in place, or of a run's folds.

    Args:
        folder: holds fold_K/scores/summary.json, or scores/summary.json, or summary.json; the first of them
            counts, as a run's own scores do not tell its folds apart, and the summary.json of a fold is about
            more than scores.
        name: of the model; None: the folder's.

    Raises:
        FileNotFoundError: no scores in it.
        ValueError: the folds were scored under different protocols, or a summary.json is something else.
    """
    folder = Path(folder)
    summaries = folder.glob(f"fold_*/{SCORES}/{SUMMARY}")
    folds = [path.parent for path in summaries if re.fullmatch(r"fold_\d+", path.parts[-3])]
    found = sorted(folds, key=lambda path: (len(path.parts[-2]), path))  # fold_10 after fold_2
    if not found:
        found = [place for place in (folder / SCORES, folder) if (place / SUMMARY).is_file()][:1]
    if not found:
        places = f"{SUMMARY}, {SCORES}/{SUMMARY} or fold_K/{SCORES}/{SUMMARY}"
        raise FileNotFoundError(f"{folder}: no {places} in it; `jaxmamba3d evaluate` writes one")
    return read_model(name or _name_of(folder), found)


def read_model(name: str, folders: Sequence[Path]) -> ScoredModel:
    """A model from the folders of its scores, one or one per fold.

    Raises:
        FileNotFoundError: a folder has no summary.json.
        ValueError: the folds were scored under different protocols, or a summary.json is something else.
    """
    evaluations = tuple(read_evaluation(folder) for folder in folders)
    model = ScoredModel(name, evaluations, tuple(_predictions_of(folder) for folder in folders))
    for folder, evaluation in zip(folders, evaluations, strict=True):
        _check_protocol(str(folders[0]), model.protocol, str(folder), evaluation.protocol)
    return model


def find_models(folders: Sequence[str | Path], names: Sequence[str] = ()) -> list[ScoredModel]:
    """Each folder's model, see `find_model`.

    Raises:
        FileNotFoundError, ValueError: see `find_model`; or there are not as many names, or two are the same.
    """
    check_that(bool(folders), "the models", "at least one folder", "none")
    wanted = f"one for each of the {len(folders)} models"
    check_that(len(names) in (0, len(folders)), "names", wanted, list(names))
    models = [find_model(*both) for both in itertools.zip_longest(folders, names)]
    found = [model.name for model in models]
    check_that(len(set(found)) == len(found), "names", "different (give them with --names)", found)
    return models


def comparable(models: Sequence[ScoredModel], *, common_cases: bool = False) -> list[ScoredModel]:
    """The models, once it is sure that their numbers mean the same.

    Args:
        models: at least one.
        common_cases: leave out cases that not all models were scored on, instead of refusing.

    Raises:
        ValueError: they were scored under different protocols, on different cases or against different
            labels.
    """
    for model in models:
        _check_protocol(models[0].name, models[0].protocol, model.name, model.protocol)
    common = frozenset.intersection(*(model.cases for model in models))
    for model in models[1:]:
        _check_labels(models[0], model)
    if common_cases:
        check_that(bool(common), "the models", "scored on some cases in common", "none")
        return [model.only(common) for model in models]
    for model in models:
        missing = sorted(frozenset.union(*(m.cases for m in models)) - model.cases)
        wanted = "scored on the same cases (or compared with --common-cases)"
        check_that(not missing, "all models", wanted, f"{model.name} without {first_few(missing)}")
    return list(models)


def _check_protocol(name: str, protocol: Protocol, other_name: str, other: Protocol) -> None:
    ours, theirs = (dataclasses.asdict(p) for p in (protocol, other))
    # As text, in which NaN is NaN.
    different = [key for key in ours if repr(ours[key]) != repr(theirs[key])]
    if different:
        found = f"{protocol.name} of {name} and {other.name} of {other_name}"
        raise ValueError(
            f"all models must be scored under the same protocol, got {found}, which differ in "
            f"{', '.join(different)}; score them again with `jaxmamba3d evaluate --protocol`"
        )


def _check_labels(model: ScoredModel, other: ScoredModel) -> None:
    sizes, others = (
        {(score.case, score.structure): score.reference_voxels for score in m.scores} for m in (model, other)
    )
    for key in sizes.keys() & others.keys():
        found = f"{sizes[key]} true voxels of {key[1]} for {model.name}, {others[key]} for {other.name}"
        wanted = "scored against the same labels"
        check_that(sizes[key] == others[key], "all models", f"{wanted}", f"{key[0]} with {found}")


def _name_of(folder: Path) -> str:
    folder = folder.resolve()
    if folder.name.startswith(SCORES):
        folder = folder.parent
    inside_run = folder.name.startswith("fold_")
    return f"{folder.parent.name} {folder.name}" if inside_run else folder.name


def _predictions_of(scores: Path) -> Path:
    """Where training and `evaluate` leave the segmentations that they score."""
    ending = scores.name.removeprefix(SCORES)
    validation = scores.parent / f"{VALIDATION}{ending}"
    return validation if validation.is_dir() else scores.parent
