"""Which structures a score is about, and what it is where a structure is absent."""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from typing import Literal

from jaxmamba3d.checks import check_choice, check_positive, check_that
from jaxmamba3d.data.providers import HEART, ORGANS
from jaxmamba3d.labels import Labels


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How cases are scored: the structures, and the conventions that published numbers differ in.

    Args:
        name: the protocol's name.
        classes: structure -> label values whose union it is; each counts alike in the mean over classes.
        unscored_labels: label values that may occur but are not scored; 0, the background, always may.
        ignore_label: voxels with this reference label count as background in both segmentations.
        dice_both_absent: Dice where neither segmentation has the structure; NaN leaves the case out.
        hd95_both_absent: HD95, likewise.
        hd95_one_absent: HD95 where exactly one has the structure: a number, NaN to leave the case out, or
            "diagonal", the length of the image's diagonal, which no real distance exceeds (the BraTS
            challenges' 373.13 mm). Dice and NSD are 0 there.
        hd95_unit: the unit in which HD95 is quoted; both are always written.
        nsd_tolerance_mm: distance up to which a surface voxel counts as right.
    """

    name: str
    classes: Mapping[str, tuple[int, ...]]
    unscored_labels: tuple[int, ...] = ()
    ignore_label: int | None = None
    dice_both_absent: float = math.nan
    hd95_both_absent: float = math.nan
    hd95_one_absent: float | Literal["diagonal"] = "diagonal"
    hd95_unit: Literal["mm", "voxels"] = "mm"
    nsd_tolerance_mm: float = 2.0

    def __post_init__(self):
        check_that(bool(self.classes), "classes", "at least one structure", dict(self.classes))
        for structure, labels in self.classes.items():
            valid = bool(labels) and all(isinstance(label, int) and label > 0 for label in labels)
            check_that(valid, f"classes[{structure!r}]", "label values above 0", labels)
        unscored = self.ignore_label not in self.declared_labels
        check_that(unscored, "ignore_label", "a label of its own", self.ignore_label)
        check_choice("hd95_unit", self.hd95_unit, ("mm", "voxels"))
        check_positive("nsd_tolerance_mm", self.nsd_tolerance_mm)
        if isinstance(self.hd95_one_absent, str):
            check_choice("hd95_one_absent", self.hd95_one_absent, ("diagonal",))

    @property
    def names(self) -> dict[int, str]:
        """The name of each scored label value: its structure, or the regions that do and do not hold it."""
        regions = {name: frozenset(labels) for name, labels in self.classes.items()}
        names = {value: _name_of(value, regions) for value in sorted(frozenset.union(*regions.values()))}
        times = Counter(names.values())
        return {
            value: name if times[name] == 1 else f"{name} (label {value})" for value, name in names.items()
        }

    @property
    def declared_labels(self) -> frozenset[int]:
        """Every label value that may occur in a segmentation."""
        scored = {label for labels in self.classes.values() for label in labels}
        return frozenset({0, *scored, *self.unscored_labels})


# The conventions of the scripts behind the paper's tables (LucaLumetti/TamingMambas, `evaluation/*/eval.py`,
# after nnFormer's): medpy's hd95 without spacing, and an HD95 of 0 wherever a structure is absent, which
# rewards missing it. For comparison with published numbers; the default protocol punishes a miss.
_PUBLISHED = {
    "dice_both_absent": 1.0,
    "hd95_both_absent": 0.0,
    "hd95_one_absent": 0.0,
    "hd95_unit": "voxels",
}

_SYNAPSE = {organ: (value,) for value, organ in enumerate(ORGANS, 1)}
_SYNAPSE_UNSCORED = (5, 9, 10, 12, 13)

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "synapse8",
            {name: labels for name, labels in _SYNAPSE.items() if labels[0] not in _SYNAPSE_UNSCORED},
            unscored_labels=_SYNAPSE_UNSCORED,
            **_PUBLISHED,
        ),
        Protocol("synapse13", _SYNAPSE, **_PUBLISHED),
        Protocol("acdc", {part: (value,) for value, part in enumerate(HEART, 1)}, **_PUBLISHED),
        # Labels as in the Decathlon's Task01: 1 edema, 2 non-enhancing tumour, 3 enhancing tumour.
        Protocol("brats", {"ET": (3,), "TC": (2, 3), "WT": (1, 2, 3)}, **_PUBLISHED),
    )
}


def get_protocol(name: str) -> Protocol:
    """The published protocol of that name: synapse8, synapse13, acdc or brats.

    Raises:
        ValueError: there is none.
    """
    check_choice("protocol", name, sorted(PROTOCOLS))
    return PROTOCOLS[name]


def dataset_protocol(labels: Labels) -> Protocol:
    """The default protocol: every class or region of a dataset, absent ones left out, misses punished."""
    scored = {value for values in labels.structures.values() for value in values}
    unscored = tuple(value for value in labels.values if value and value not in scored)
    return Protocol("dataset", labels.structures, unscored_labels=unscored, ignore_label=labels.ignore)


def _name_of(value: int, regions: Mapping[str, frozenset[int]]) -> str:
    """The smallest regions that hold the value, without the largest parts of them that do not."""
    holding = {name: values for name, values in regions.items() if value in values}
    smallest = {
        name: values
        for name, values in holding.items()
        if not any(other < values for other in holding.values())
    }
    shared = frozenset.intersection(*smallest.values())
    parts = {name: values & shared for name, values in regions.items() if value not in values}
    largest = [
        name for name, part in parts.items() if part and not any(part < other for other in parts.values())
    ]
    name = " and ".join(smallest)
    return f"{name} without {' and '.join(largest)}" if largest else name
