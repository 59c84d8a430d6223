"""The work folder: what planning and preprocessing leave for training."""

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxmamba3d.checks import check_choice, check_positive, check_that
from jaxmamba3d.data.cases import Dataset
from jaxmamba3d.data.dataset import read_dataset
from jaxmamba3d.data.fingerprint import compute_fingerprint, save_fingerprint
from jaxmamba3d.data.inspection import check_dataset, find_orientations, warn_of_headers
from jaxmamba3d.data.nifti import SPACINGS_MM
from jaxmamba3d.data.planning import CONFIGURATIONS, REFERENCE_GB, normalization_of, plan_dataset
from jaxmamba3d.data.plans import Plans, load_plans, respaced, save_plans
from jaxmamba3d.data.preprocessed import preprocess_dataset
from jaxmamba3d.data.splits import Split, cases_in_folds, load_splits, make_splits
from jaxmamba3d.files import FileIdentities, check_writable, folder_lock, load_json, write_json
from jaxmamba3d.wording import first_few, sizes

logger = logging.getLogger(__name__)

PLANS, SPLITS, SOURCE = "nnUNetPlans.json", "splits_final.json", "source.json"


@dataclass(frozen=True)
class Workspace:
    """A planned dataset.

    Args:
        folder: the work folder.
        dataset: the raw data; cases in no fold are test cases.
        plans: how it is preprocessed and which net fits.
        splits: for each fold the case names `train` and `val`.
        orientations: how many cases of the folds are stored in each, such as {"RAS": 20}; empty: not known.
    """

    folder: Path
    dataset: Dataset
    plans: Plans
    splits: Sequence[Split]
    orientations: Mapping[str, int]

    @property
    def in_folds(self) -> Dataset:
        """The dataset without its test cases."""
        return _without_test_cases(self.dataset, self.splits)

    @property
    def case_names(self) -> list[str]:
        """Sorted."""
        return [case.name for case in self.dataset.cases]

    def cases_folder(self, configuration: str) -> Path:
        """Where the preprocessed cases of a configuration lie."""
        return self.folder / configuration

    def preprocess(self, configuration: str = "3d_fullres", *, processes: int | None = None) -> Path:
        """Preprocesses the cases of the folds that are not finished yet; returns their folder.

        Where another process does so, waits for it, and does what is left.

        Raises:
            ValueError: the plans have no such configuration, or a case is bad.
        """
        check_choice("configuration", configuration, self.plans.configurations)
        folder = self.cases_folder(configuration)
        with folder_lock(folder, busy=lambda: logger.info("waiting: another process prepares %s", folder)):
            preprocess_dataset(self.in_folds, self.plans, configuration, folder, processes=processes)
        return folder

    def folds(self, fold: int | Literal["all"]) -> tuple[int, ...]:
        """The folds that a config's `data.fold` asks for.

        Raises:
            ValueError: there is no such fold.
        """
        if fold == "all":
            return tuple(range(len(self.splits)))
        self.split(fold)
        return (fold,)

    def split(self, fold: int) -> dict[str, list[str]]:
        """Case names {"train", "val"} of a fold.

        Raises:
            ValueError: there is no such fold.
        """
        _check_fold(fold, self.splits)
        return self.splits[fold]


def plan_workspace(
    dataset_folder: str | Path,
    folder: str | Path,
    *,
    plans_file: str | Path | None = None,
    splits_file: str | Path | None = None,
    memory_gb: float | None = None,
    spacing: tuple[float, float, float] | None = None,
    configuration: str = "3d_fullres",
    fold: int | Literal["all"] | None = None,
    processes: int | None = None,
) -> Workspace:
    """Checks a dataset, plans it and writes the decisions into a work folder, unless that is done already.

    Args:
        dataset_folder: see `read_dataset`.
        folder: the work folder; made if missing.
        plans_file: an nnUNetPlans.json to take instead of planning.
        splits_file: a splits_final.json; None: the dataset's own if it has one, else 5 folds. Cases that it
            does not name are test cases: checked, but neither planned for nor preprocessed.
        memory_gb: device memory that the plans aim at; None: whatever the folder was planned for, else
            nnU-Net's 8 GB.
        spacing: voxel size in mm, in the order of the patch's axes, that replaces the planned one of
            `configuration`; the patch stays as it is in voxels.
        configuration: of the plans.
        fold: to be trained in this configuration, both of which are checked before the cases are read; None:
            none yet.
        processes: worker processes; None: one for each core.

    Raises:
        ValueError: the dataset has bad cases (all are named), there is no such fold or configuration, or the
            folder was planned for another dataset, memory, spacing, plans or splits.
    """
    folder, dataset_folder = Path(folder), Path(dataset_folder).resolve()
    if memory_gb is not None:
        check_positive("memory_gb", memory_gb)
    if spacing is not None:
        low, high = SPACINGS_MM
        valid = len(spacing) == 3 and all(low <= size <= high for size in spacing)
        check_that(valid, "spacing", f"three sizes of voxels from {low} to {high:g} mm", spacing)
    planned_already = functools.partial(
        _planned_already, folder, dataset_folder, plans_file, splits_file, memory_gb, spacing, configuration
    )
    if (folder / SOURCE).is_file():
        return planned_already()
    check_writable(folder, "work folder")
    memory_gb = REFERENCE_GB if memory_gb is None else memory_gb
    dataset = read_dataset(dataset_folder)
    names = [case.name for case in dataset.cases]
    # None: neither the dataset's nor made here, so that it may change its own.
    own_splits = (dataset_folder / SPLITS).is_file() if splits_file is None else None
    if own_splits:
        splits_file = dataset_folder / SPLITS
    splits = make_splits(names) if splits_file is None else load_splits(splits_file, names)
    plans, fingerprint = None if plans_file is None else load_plans(plans_file), None
    if plans is not None:
        _check_channels(plans, dataset, plans_file)
    if fold is not None:
        check_choice("configuration", configuration, plans.configurations if plans else CONFIGURATIONS)
        _check_fold(fold, splits)
    in_folds = _without_test_cases(dataset, splits)
    warn_of_headers(dataset.cases)
    if plans is not None:
        check_dataset(dataset, processes=processes)
    else:
        named = cases_in_folds(splits)
        if test_cases := tuple(case for case in dataset.cases if case.name not in named):
            check_dataset(dataclasses.replace(dataset, cases=test_cases), processes=processes)
        fingerprint = compute_fingerprint(in_folds, processes=processes)
        plans = plan_dataset(in_folds, memory_gb=memory_gb, fingerprint=fingerprint)
    plans = respaced(plans, configuration, spacing)
    orientations = {code: len(names) for code, names in find_orientations(in_folds.cases).items()}
    cases = {case.name: case.identity() for case in dataset.cases}
    with folder_lock(folder, busy=lambda: logger.info("waiting: another process plans %s", folder)):
        if (folder / SOURCE).is_file():  # since this call began
            return planned_already()
        if fingerprint is not None:
            save_fingerprint(fingerprint, folder / "dataset_fingerprint.json")
        save_plans(plans, folder / PLANS)
        write_json(folder / SPLITS, splits)
        # Last, because its presence says that the rest is complete.
        source = {
            "dataset": str(dataset_folder),
            "memory_gb": memory_gb,
            "own_splits": own_splits,
            "channel_names": None if plans_file else dataset.channel_names,
            "orientations": orientations,
            "cases": cases,
        }
        write_json(folder / SOURCE, source)
    for name, chosen in plans.configurations.items():
        patch = f"patch {chosen.patch_size}, batch {chosen.batch_size}"
        facts = f"planned spacing {sizes(chosen.spacing)} mm, {patch}"
        logger.info("%s: %s; %d cases in %d folds", name, facts, len(in_folds.cases), len(splits))
    if rest := len(names) - len(in_folds.cases):
        logger.info("%d cases are in no fold: test cases, which are not trained on", rest)
    return Workspace(folder, dataset, plans, splits, orientations)


def _planned_already(
    folder, dataset_folder, plans_file, splits_file, memory_gb, spacing, configuration
) -> Workspace:
    """The work folder as it is, if `plan_workspace` would make such a one."""
    expected = {"dataset": str(dataset_folder)} | ({} if memory_gb is None else {"memory_gb": memory_gb})
    _check_source(folder, expected)
    workspace = open_workspace(folder)
    found = workspace.plans
    same = spacing is None or respaced(found, configuration, spacing) == found
    check_that(same, f"work folder {folder}", f"planned with spacing {spacing}", "another spacing")
    if plans_file is not None:
        same = respaced(load_plans(plans_file), configuration, spacing) == found
        check_that(same, f"work folder {folder}", f"planned by {plans_file}", "other plans")
    if splits_file is not None:
        same = load_splits(splits_file, workspace.case_names) == workspace.splits
        check_that(same, f"work folder {folder}", f"split by {splits_file}", "other splits")
    return workspace


def _check_fold(fold: int | Literal["all"], splits: Sequence[Split]) -> None:
    there = fold == "all" or 0 <= fold < len(splits)
    check_that(there, "data.fold", f"from 0 to {len(splits) - 1}", fold)


def _without_test_cases(dataset: Dataset, splits: Sequence[Split]) -> Dataset:
    named = cases_in_folds(splits)
    return dataclasses.replace(dataset, cases=tuple(case for case in dataset.cases if case.name in named))


def _check_channels(plans: Plans, dataset: Dataset, plans_file: str | Path) -> None:
    channels = len(dataset.channel_names)
    for name, configuration in plans.configurations.items():
        planned = len(configuration.normalization_schemes)
        wanted = f"for the dataset's {channels} channels"
        check_that(planned == channels, f"configuration {name} of {plans_file}", wanted, f"for {planned}")


def open_workspace(folder: str | Path) -> Workspace:
    """The work folder that `plan_workspace` made; warns of cases that were added or changed since.

    Raises:
        FileNotFoundError: it is not one.
        ValueError: cases of its splits are no longer in the dataset, or the dataset is described in another
            way than it was planned.
    """
    folder = Path(folder)
    if not (folder / SOURCE).is_file():
        raise FileNotFoundError(f"{folder}: not a work folder; make one with `jaxmamba3d plan`")
    source = _source(folder)
    dataset = read_dataset(source["dataset"])
    planned = source.get("cases", {})
    names = [case.name for case in dataset.cases]
    gone = sorted(planned.keys() - set(names))
    splits = load_splits(folder / SPLITS, [*names, *gone])
    _check_cases(folder, dataset, planned, splits)
    plans, orientations = load_plans(folder / PLANS), source.get("orientations", {})
    workspace = Workspace(folder, dataset, plans, splits, orientations)
    _check_description(workspace, source.get("own_splits"), source.get("channel_names"))
    return workspace


def _check_description(
    workspace: Workspace, own_splits: bool | None, channel_names: list[str] | None
) -> None:
    """Refuses plans and splits that are not what the dataset says by now, if they were made of it."""
    folder, dataset = workspace.folder, workspace.dataset
    found = dataset.folder / SPLITS
    if own_splits is not None and found.is_file():
        same = load_splits(found, workspace.case_names) == workspace.splits
        wanted = f"split by {found} as it is now (plan into a new work folder)"
        check_that(same, f"work folder {folder}", wanted, "other splits")
    if channel_names is not None:
        then, now = ([*map(normalization_of, names)] for names in (channel_names, dataset.channel_names))
        wanted = f"planned for the channels {', '.join(dataset.channel_names)} (plan into a new work folder)"
        check_that(then == now, f"work folder {folder}", wanted, ", ".join(channel_names))


def _check_cases(
    folder: Path, dataset: Dataset, planned: Mapping[str, FileIdentities], splits: Sequence[Split]
) -> None:
    """Says what became of the dataset since it was planned; earlier versions kept no record: `planned` {}."""
    again = "plan into a new work folder"
    used = cases_in_folds(splits)
    now = {case.name: case for case in dataset.cases}
    gone = sorted(used - now.keys())
    wanted = f"of cases that {dataset.folder} has: put them back, or {again}"
    check_that(not gone, f"{folder / SPLITS}", wanted, f"{first_few(gone)}, gone since it was planned")
    if not planned:
        return
    if added := sorted(now.keys() - planned.keys() - used):
        logger.warning(
            "%s came to %s after it was planned and are in no fold, so they are not trained on; add them to "
            "%s, or %s",
            first_few(added),
            dataset.folder,
            folder / SPLITS,
            again,
        )
    changed = [name for name in now if name in planned and now[name].identity() != planned[name]]
    if changed:
        logger.warning(
            "files of %s in %s changed after it was planned; the plans are kept as they are: %s if other "
            "spacings, sizes or intensities are to count",
            first_few(changed),
            dataset.folder,
            again,
        )


def _check_source(folder: Path, expected: dict[str, object]) -> None:
    """Before the dataset is opened, which may have been moved."""
    found = _source(folder)
    for key, value in expected.items():
        same = found.get(key) == value
        wanted = f"planned for {key} {value} (or choose another folder)"
        check_that(same, f"work folder {folder}", wanted, f"{key} {found.get(key)}")


def _source(folder: Path) -> dict[str, Any]:
    """What `plan_workspace` has left there of how it planned."""
    source = load_json(folder / SOURCE, "a dataset's path")
    known = isinstance(source.get("dataset"), str)
    check_that(known, str(folder / SOURCE), 'of "dataset", a path', source.get("dataset", "none"))
    return source
