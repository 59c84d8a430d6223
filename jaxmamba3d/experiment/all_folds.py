"""What the folds of a run come to together."""

import logging

from jaxmamba3d.data import Workspace
from jaxmamba3d.evaluation import SCORES, Evaluation, evaluate_together
from jaxmamba3d.experiment.validation import decide_on_postprocessing, log_scores, validation_pairs
from jaxmamba3d.files import load_json, write_json
from jaxmamba3d.run import POSTPROCESSING, Run

logger = logging.getLogger(__name__)


def combine_folds(run: Run, workspace: Workspace) -> Evaluation | None:
    """Decides on the run's post-processing, and puts the scores of its validated folds together.

    Args:
        run: has at least one validated fold.
        workspace: its data.

    Returns:
        The scores over the validation cases of all validated folds, which lie in the run's scores/; None
        where a single fold is all that there is.
    """
    validated = run.validated_folds()
    if len(validated) == 1 and run.config.data.fold != "all":
        decision = load_json(run.fold_folder(validated[0]) / POSTPROCESSING, "a post-processing")
        write_json(run.folder / POSTPROCESSING, decision)
        return None
    output = run.folder / SCORES
    scores = evaluate_together([run.fold_folder(fold) / SCORES for fold in validated], output)
    logger.info("folds %s together, %d cases:", ", ".join(map(str, validated)), len(scores.cases))
    log_scores(scores)
    logger.info("mean Dice %.3f over all folds; scores are in %s", scores.mean["dice"], output)
    pairs = [pair for fold in validated for pair in validation_pairs(run, workspace, fold)]
    decide_on_postprocessing(pairs, run.labels, run.folder, scores.protocol)
    return scores
