"""What the values of a segmentation mean: nnU-Net's labels, regions and ignore label."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jaxmamba3d.checks import check_that

BACKGROUND, IGNORE = "background", "ignore"
MAX_LABELS = 256
"""Of a segmentation, whose files are uint8."""

OUTSIDE = -1
"""Label of preprocessed voxels outside the body or the volume; for augmentation and loss it is background."""


@dataclass(frozen=True)
class Labels:
    """The labels of a dataset, checked.

    Args:
        entries: name -> values, in the order of dataset.json; background and ignore among them.
        regions_class_order: with regions, the value that each region's voxels are written as, in the order in
            which they are painted over each other.

    Raises:
        ValueError: values are missing, doubled or out of order, or the order of the regions does not fit.

    Source: nnU-Net v2, utilities/label_handling/label_handling.py.
    """

    entries: Mapping[str, tuple[int, ...]]
    regions_class_order: tuple[int, ...] | None = None

    def __post_init__(self):
        check_that(self.entries.get(BACKGROUND) == (0,), "labels", "with background 0", _plain(self.entries))
        check_that(bool(self.structures), "labels", "background and at least one class", _plain(self.entries))
        check_that(
            self.values == tuple(range(len(self.values))),
            "labels",
            "0, 1, 2, ... without gaps",
            list(self.values),
        )
        check_that(
            "mean" not in self.entries, "labels", "of names other than mean, the tables' last row", "mean"
        )
        check_that(len(self.values) <= MAX_LABELS, "labels", f"at most {MAX_LABELS}", len(self.values))
        if IGNORE in self.entries:
            wanted = "such that `ignore` is one value, the highest, as in nnU-Net"
            highest = self.entries[IGNORE] == (len(self.values),)
            check_that(highest, "labels", wanted, _plain(self.entries))
        for name, values in self.structures.items():
            check_that(0 not in values, f"labels: {name}", "without the background, 0", list(values))
        if self.has_regions:
            regions = f"each of the {len(self.structures)} regions {list(self.structures)}"
            wanted = f"one value for {regions}, of the labels' {list(self.values)}"
            order = self.regions_class_order
            fits = order is not None and len(order) == len(self.structures) and set(order) <= set(self.values)
            check_that(fits, "regions_class_order", wanted, order)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Labels":
        """From a dataset.json's `labels` and `regions_class_order`; the Decathlon has labels value -> name.

        Raises:
            ValueError: they are no labels.
        """
        labels = content.get("labels")
        wanted = "a table of names and values"
        check_that(isinstance(labels, Mapping) and bool(labels), "labels", wanted, labels)
        order = content.get("regions_class_order")
        try:
            if all(str(key).isdigit() for key in labels):
                names = {int(value): str(name) for value, name in labels.items()}
                named = [(names[value], (value,)) for value in sorted(names)]
            else:
                named = [(str(name), _values(value)) for name, value in labels.items()]
            # Whatever a dataset calls it, 0 is the background.
            entries = {BACKGROUND if values == (0,) else name: values for name, values in named}
            check_that(len(entries) == len(labels), "labels", "of different names and values", dict(labels))
            return cls(entries, None if order is None else _values(order))
        except TypeError as error:
            wanted = "whole numbers, or lists of them for regions"
            raise ValueError(f"the values of labels must be {wanted}, got {dict(labels)}") from error

    def to_json(self) -> dict[str, Any]:
        """The same two fields, as nnU-Net writes them."""
        content: dict[str, Any] = {"labels": _plain(self.entries)}
        if self.regions_class_order is not None:
            content["regions_class_order"] = list(self.regions_class_order)
        return content

    @cached_property
    def has_regions(self) -> bool:
        """Whether structures may overlap, so that the net has a sigmoid for each instead of one softmax."""
        return any(len(values) > 1 for name, values in self.entries.items() if name != IGNORE)

    @cached_property
    def ignore(self) -> int | None:
        """The value whose voxels count nowhere."""
        return self.entries[IGNORE][0] if IGNORE in self.entries else None

    @cached_property
    def values(self) -> tuple[int, ...]:
        """All values but `ignore`, ascending, 0 included."""
        values = (value for name, entry in self.entries.items() if name != IGNORE for value in entry)
        return tuple(sorted(set(values)))

    @cached_property
    def structures(self) -> dict[str, tuple[int, ...]]:
        """What is segmented and scored, name -> values: by value, but regions in dataset.json's order."""
        entries = self.entries.items()
        found = {name: values for name, values in entries if name != IGNORE and set(values) != {0}}
        return found if self.has_regions else dict(sorted(found.items(), key=lambda item: item[1]))

    @property
    def regions(self) -> tuple[tuple[int, ...], ...] | None:
        """The values of each structure where they are regions, else None."""
        return tuple(self.structures.values()) if self.has_regions else None

    @cached_property
    def declared(self) -> frozenset[int]:
        """All values that a segmentation may hold, `ignore` included."""
        return frozenset(value for values in self.entries.values() for value in values)

    @property
    def outputs(self) -> int:
        """Channels of the logits: one per region, or one per class, background included."""
        return len(self.structures) if self.has_regions else len(self.values)

    @property
    def annotated(self) -> tuple[int, ...]:
        """The values of preprocessed voxels that count: all but `ignore`, and those outside the body."""
        return (OUTSIDE, *self.values)


def _values(entry: Any) -> tuple[int, ...]:
    """One value, or several."""
    values = entry if isinstance(entry, list | tuple) else (entry,)
    if not values or not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        raise TypeError(entry)
    return tuple(values)


def _plain(entries: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    return {name: values[0] if len(values) == 1 else list(values) for name, values in entries.items()}
