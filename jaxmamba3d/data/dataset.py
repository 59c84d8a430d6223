"""Dataset folders: the Medical Segmentation Decathlon's, nnU-Net's raw data, BTCV and ACDC as shipped."""

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxmamba3d.checks import check_choice, check_that
from jaxmamba3d.data.cases import ENDINGS, Case, Dataset, by_stem, is_nifti, nifti_files, stem_of
from jaxmamba3d.data.plans import READERS
from jaxmamba3d.data.providers import is_shipped, read_shipped
from jaxmamba3d.files import load_json
from jaxmamba3d.labels import Labels
from jaxmamba3d.wording import first_few

logger = logging.getLogger(__name__)

DESCRIPTION = "dataset.json"


@dataclass(frozen=True)
class Description:
    """What dataset.json says of images and labels.

    Args:
        channel_names: one per channel; they decide the normalisation.
        labels: what label values mean.
        content: the whole file.
    """

    channel_names: tuple[str, ...]
    labels: Labels
    content: dict[str, Any]


def is_dataset(folder: str | Path) -> bool:
    """Whether `read_dataset` is for this folder, and not one of images or segmentations alone."""
    folder = Path(folder)
    if not folder.is_dir() or any(map(is_nifti, folder.iterdir())):
        return False
    return (folder / DESCRIPTION).is_file() or is_shipped(folder)


def read_dataset(folder: str | Path) -> Dataset:
    """What is in a dataset folder: channels, labels and the cases to train on; image files are not opened.

    Args:
        folder: in the Decathlon's or nnU-Net's raw layout, or as BTCV or ACDC is shipped (see `providers`).

    Raises:
        FileNotFoundError: the folder, its dataset.json or a part of what is shipped is missing.
        ValueError: the folder is of no such layout, or there are no cases.
    """
    folder = Path(folder).resolve()
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such dataset folder")
    if not (folder / DESCRIPTION).is_file() and is_shipped(folder):
        return read_shipped(folder)
    return _read_described(folder)


def _read_described(folder: Path) -> Dataset:
    path = folder / DESCRIPTION
    description = read_description(path)
    content, channel_names = description.content, description.channel_names
    reader = content.get("overwrite_image_reader_writer")
    if reader not in (None, "None"):  # either is nnU-Net's own choice
        check_choice(f"overwrite_image_reader_writer of {path}", reader, READERS)
    if isinstance(content.get("training"), list):
        cases = _decathlon_cases(folder, content["training"], len(channel_names))
    elif isinstance(content.get("dataset"), dict):
        cases = _listed_cases(folder, content["dataset"])
    else:
        cases = _raw_cases(folder, content, len(channel_names))
    check_that(bool(cases), str(folder), "a folder with training cases", "none")
    announced = content.get("numTraining", len(cases))
    if announced != len(cases):
        logger.warning("%s says numTraining %s, but there are %d cases", path, announced, len(cases))
    names = [case.name for case in cases]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    check_that(not twice, str(path), "one entry per case", f"several for {twice}")
    return Dataset(
        name=folder.name,
        folder=folder,
        channel_names=channel_names,
        labels=description.labels,
        cases=tuple(sorted(cases, key=lambda case: case.name)),
    )


def read_description(path: str | Path) -> Description:
    """Reads a dataset.json of the Decathlon or of nnU-Net.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it is of neither layout.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: missing; a dataset of the Decathlon or of nnU-Net has one, BTCV has img/ and label/ "
            "in its place, and ACDC training/patient001/"
        )
    return description_from_json(load_json(path, "a dataset's description"), str(path))


def description_from_json(content: Any, source: str) -> Description:
    """What a dataset.json holds.

    Args:
        content: of the file.
        source: its path, for errors.

    Raises:
        ValueError: see `read_description`.
    """
    check_that(isinstance(content, dict), source, "of the Decathlon or nnU-Net", type(content).__name__)
    channel_names = _channel_names(source, content.get("channel_names", content.get("modality")))
    return Description(channel_names, _labels(source, content), content)


def read_labels(path: str | Path) -> Labels:
    """What a dataset.json says of labels.

    Raises:
        FileNotFoundError, ValueError: see `read_description`; the channels may be missing.
    """
    content = load_json(path, "a dataset's description")
    return _labels(path, content)


def _labels(path: str | Path, content: dict[str, Any]) -> Labels:
    try:
        return Labels.from_json(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def find_images(folder: str | Path, channels: int) -> tuple[Case, ...]:
    """The cases of a folder of images alone, for prediction.

    CASE_0000.nii.gz, CASE_0001.nii.gz ... (nnU-Net) are one case's channels; where no file is a channel 0000,
    each is a case (Decathlon), whatever numbers end their names.

    Raises:
        FileNotFoundError: no such folder, or it has no NIfTI files.
        ValueError: a case lacks channels, has too many or two files, or only some files are numbered.
    """
    folder = Path(folder)
    files = nifti_files(folder)
    others = sorted(path.name for path in folder.iterdir() if path.is_file() and not is_nifti(path))
    if others := [name for name in others if name[0] != "."]:
        logger.warning("left out of %s, not being NIfTI: %s", folder, first_few(others))
    names = by_stem(files, folder)
    if not any(name.endswith("_0000") for name in names):
        return tuple(Case(name, (path,)) for name, path in names.items())
    numbered = _by_case(files)
    stray = len(files) - sum(map(len, numbered.values()))
    check_that(stray == 0, f"images in {folder}", "all numbered by channel, or none", f"{stray} that are not")
    wanted = [f"{channel:04d}" for channel in range(channels)]
    wrong = [
        f"{name} has {', '.join(found)}"
        for name, paths in numbered.items()
        if (found := [stem_of(path)[-4:] for path in paths]) != wanted
    ]
    wanted = f"of channels {', '.join(wanted)} for each case"
    check_that(not wrong, f"images in {folder}", wanted, first_few(wrong))
    return tuple(Case(name, tuple(paths)) for name, paths in numbered.items())


def _channel_names(source: str, entries: Any) -> tuple[str, ...]:
    numbered = isinstance(entries, dict) and sorted(entries) == sorted(map(str, range(len(entries))))
    wanted = 'channel names by number, such as {"0": "CT"}'
    check_that(numbered and bool(entries), f"{source}: channel_names (or modality)", wanted, entries)
    return tuple(str(entries[str(channel)]) for channel in range(len(entries)))


def _decathlon_cases(folder: Path, entries: list[Any], channels: int) -> list[Case]:
    try:
        return [
            Case(
                stem_of(Path(entry["image"])),
                _channel_files(folder / entry["image"], channels),
                folder / entry["label"],
            )
            for entry in entries
        ]
    except (KeyError, TypeError) as error:
        wanted = 'a list of {"image": file, "label": file}'
        raise ValueError(f"{folder / DESCRIPTION}: training must be {wanted}, got {entries[:1]}") from error


def _channel_files(listed: Path, channels: int) -> tuple[Path, ...]:
    """The file, or where it is not there, as in raw data of nnU-Net's first version, its channels' files."""
    name, ending = stem_of(listed), listed.name.removeprefix(stem_of(listed))
    files = tuple(listed.with_name(f"{name}_{channel:04d}{ending}") for channel in range(channels))
    return files if files[0].is_file() and not listed.is_file() else (listed,)


def _listed_cases(folder: Path, entries: dict[str, Any]) -> list[Case]:
    """The cases of nnU-Net's table `dataset`, whose files lie anywhere; $NAME is an environment variable."""
    argument = f"{folder / DESCRIPTION}: dataset"
    for name, entry in entries.items():
        named = bool(name) and name[0] != "." and not set(name) & {"/", "\\"}
        check_that(named, argument, "of cases named as files can be, without / and \\", repr(name))
        wanted = 'a table of case: {"images": [file, ...], "label": file}'
        check_that(_lists_files(entry), argument, wanted, {name: entry})

    def located(path: str) -> Path:
        return folder / os.path.expandvars(path)

    return [
        Case(name, tuple(map(located, entry["images"])), located(entry["label"]))
        for name, entry in entries.items()
    ]


def _lists_files(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("images"), list):
        return False
    files = *entry["images"], entry.get("label")
    return len(files) > 1 and all(isinstance(file, str) for file in files)


def _raw_cases(folder: Path, content: dict[str, Any], channels: int) -> list[Case]:
    """The cases of imagesTr; a channel that is not there is listed, for the check of files to find."""
    ending = content.get("file_ending", ENDINGS[0])
    check_that(ending in ENDINGS, f"{folder / DESCRIPTION}: file_ending", f"one of {ENDINGS}", repr(ending))
    images = folder / "imagesTr"
    files = nifti_files(images)
    cases = _by_case(files)
    stray = sorted(set(files) - {path for paths in cases.values() for path in paths})
    check_that(
        not stray, f"files of {images}", "CASE_0000, CASE_0001, ...", first_few([path.name for path in stray])
    )
    expected = {name: {images / f"{name}_{n:04d}{ending}" for n in range(channels)} for name in cases}
    return [
        Case(name, tuple(sorted(expected[name] | set(found))), folder / "labelsTr" / f"{name}{ending}")
        for name, found in cases.items()
    ]


def _by_case(files: Iterable[Path]) -> dict[str, list[Path]]:
    """Files whose name ends in _0000, _0001, ... grouped by the name before it."""
    cases: dict[str, list[Path]] = {}
    for path in files:
        name, _, channel = stem_of(path).rpartition("_")
        if name and len(channel) == 4 and channel.isdigit():
            cases.setdefault(name, []).append(path)
    return cases
