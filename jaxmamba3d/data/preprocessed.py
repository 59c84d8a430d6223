"""The preprocessed cases of a dataset: made once, and again where their files have changed."""

import functools
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmamba3d.checks import check_choice, check_that
from jaxmamba3d.data.case_files import Centres, forget_cases, is_made_from, write_case
from jaxmamba3d.data.cases import Case, Dataset
from jaxmamba3d.data.inspection import inspect_case
from jaxmamba3d.data.parallel import map_cases
from jaxmamba3d.data.patches import foreground_table
from jaxmamba3d.data.plans import Plans
from jaxmamba3d.data.preprocessing import preprocess_volume
from jaxmamba3d.data.room import check_room
from jaxmamba3d.files import check_writable, load_json, write_json
from jaxmamba3d.labels import Labels
from jaxmamba3d.wording import first_few

CONFIGURATION = "configuration.json"

logger = logging.getLogger(__name__)


def preprocess_dataset(
    dataset: Dataset,
    plans: Plans,
    configuration: str,
    output_folder: str | Path,
    *,
    processes: int | None = None,
) -> None:
    """Preprocesses all cases that the output folder does not hold yet, or whose files changed since.

    Writes OUTPUT/CASE/ (see `case_files`) for each case, and OUTPUT/configuration.json, which says what the
    cases were made with. May be killed and started again at any time.

    Args:
        dataset: cases with labels.
        plans: of the dataset.
        configuration: one of the plans'.
        output_folder: made if missing.
        processes: worker processes; None: one for each core.

    Raises:
        ValueError: the folder holds cases made with other settings (the first difference is named), may not
            be written or its disk has far too little room, or cases are bad (all are named; the good ones
            are kept).
        OSError: a case cannot be written.
        ChildProcessError: a worker process was killed.
    """
    check_choice("configuration", configuration, plans.configurations)
    output = Path(output_folder)
    what = "the folder of preprocessed cases"
    if not output.is_dir():
        check_writable(output, what)
    output.mkdir(parents=True, exist_ok=True)
    _check_or_write_settings(output / CONFIGURATION, _settings(dataset, plans, configuration))
    todo = [case for case in dataset.cases if not is_made_from(output / case.name, case.identity())]
    changed = [case.name for case in todo if (output / case.name).is_dir()]
    gone = {path.name for path in output.iterdir() if path.is_dir() and path.name[0] != "."}
    gone -= {case.name for case in dataset.cases}
    logger.info("%d of %d cases are preprocessed already", len(dataset.cases) - len(todo), len(dataset.cases))
    if changed:
        names = first_few(changed)
        logger.info("files of %s changed since they were preprocessed, or are damaged; once more", names)
    if gone:
        logger.info("%s are no cases of the folds of %s; not used", first_few(sorted(gone)), dataset.folder)
    if not todo:
        return
    check_writable(output, what)
    check_room(output, plans.configurations[configuration], len(todo))
    work = functools.partial(
        _preprocess_and_write, plans, configuration, dataset.channel_names, dataset.labels, output
    )
    problems = map_cases(work, todo, processes=processes, description=f"preprocess {configuration}")
    forget_cases()
    failures = [problem for problem in problems if problem]
    if failures:
        what = f"{len(failures)} of {len(dataset.cases)} cases are bad; fix or remove them"
        raise ValueError(f"{what}:\n" + "\n".join(failures))


def _preprocess_and_write(
    plans: Plans,
    configuration: str,
    channel_names: Sequence[str],
    labels: Labels,
    output: Path,
    case: Case,
) -> str | None:
    """What is wrong with the case, or None."""
    try:
        check_that(case.label is not None, "its label", "there for training", None)
        # Before anything is read: what changes while it is read has changed the next time.
        identity = case.identity()
        # Checked once more: since the dataset was planned, the case may have been added or changed.
        problems, volume, label = inspect_case(channel_names, labels, case)
        if problems:
            return f"{case.name}: {'; '.join(problems)}"
        name = f"the image {case.images[0]}"
        done = preprocess_volume(volume, label, plans, configuration, name=name)
    except (ValueError, OSError) as error:
        return f"{case.name}: {error}"
    write_case(
        output / case.name,
        image=done.image,
        label=done.label,
        centres=_centres(done.label, labels),
        properties=done.properties,
        identity=identity,
    )
    return None


def _centres(label: np.ndarray, labels: Labels) -> Centres:
    classes = list(labels.structures.values())
    if labels.ignore is None:
        return Centres(tuple(foreground_table(label, classes)))
    # One stream of random numbers goes over all of them, what is annotated last.
    *structures, annotated = foreground_table(label, [*classes, labels.annotated]) or [None]
    return Centres(tuple(structures), annotated)


def _settings(dataset: Dataset, plans: Plans, configuration: str) -> dict[str, Any]:
    """All that the written arrays depend on other than the image files, as JSON reads it back."""
    chosen = plans.configurations[configuration]
    settings = {
        "dataset_name": plans.dataset_name,
        "configuration": configuration,
        "transpose_forward": plans.transpose_forward,
        "spacing": chosen.spacing,
        "normalization_schemes": chosen.normalization_schemes,
        "use_mask_for_norm": chosen.use_mask_for_norm,
        "intensity_properties": plans.intensity_properties,
        **dataset.labels.to_json(),
    }
    return json.loads(json.dumps(settings))


def _check_or_write_settings(path: Path, settings: dict[str, Any]) -> None:
    if path.is_file():
        found = load_json(path, "the settings of preprocessed cases")
        for key, wanted in settings.items():
            same = found.get(key) == wanted
            check_that(same, f"{key} of {path}", f"{wanted} (or remove the folder)", found.get(key))
        return
    write_json(path, settings)
