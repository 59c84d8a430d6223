"""Cross-validation splits."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxmamba3d.checks import check_that
from jaxmamba3d.files import load_json
from jaxmamba3d.wording import first_few

Split = dict[str, list[str]]
"""Case names `train` and `val` of one fold."""


def make_splits(case_names: Collection[str], folds: int = 5) -> list[Split]:
    """nnU-Net's splits: scikit-learn's KFold(folds, shuffle=True, random_state=12345) on the sorted names.

    Raises:
        ValueError: there are fewer cases than folds.
    """
    names = sorted(case_names)
    wanted = f"at least {folds}, one per fold (or give a list of splits, by --splits or --data.splits)"
    check_that(len(names) >= folds, "cases", wanted, len(names))
    order = np.arange(len(names))
    np.random.RandomState(12345).shuffle(order)
    splits = []
    for part in np.array_split(order, folds):
        validation = set(part.tolist())
        splits.append(
            {
                "train": [name for i, name in enumerate(names) if i not in validation],
                "val": [name for i, name in enumerate(names) if i in validation],
            }
        )
    return splits


def cases_in_folds(splits: Sequence[Mapping[str, Sequence[str]]]) -> frozenset[str]:
    """The names that some fold trains or validates on; a dataset's other cases are test cases."""
    return frozenset(name for split in splits for part in ("train", "val") for name in split[part])


def load_splits(path: str | Path, case_names: Collection[str] | None = None) -> list[Split]:
    """Reads nnU-Net's splits_final.json and checks it against the cases, if they are known.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no list of splits, names unknown cases, or trains on validation cases.
    """
    splits: Sequence[Split] = load_json(path, "a list of splits", list)
    try:
        named = [(set(split["train"]), set(split["val"])) for split in splits]
    except (KeyError, TypeError) as error:
        wanted = 'a list of {"train": [case names], "val": [case names]}'
        raise ValueError(f"{path} must be {wanted}, got another file ({error})") from error
    check_that(bool(named), str(path), "a list of at least one fold", "none")
    for fold, (train, validation) in enumerate(named):
        unknown = [] if case_names is None else sorted((train | validation) - set(case_names))
        check_that(not unknown, f"{path}, fold {fold}", "of cases that the dataset has", first_few(unknown))
        both = sorted(train & validation)
        check_that(not both, f"{path}, fold {fold}", "apart in train and val", f"{first_few(both)} in both")
        check_that(bool(train and validation), f"{path}, fold {fold}", "with cases in train and val", "none")
    return [{"train": list(split["train"]), "val": list(split["val"])} for split in splits]
