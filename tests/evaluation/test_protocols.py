"""The registry against the label lists of the authors' dataset.json files, and those of datasets."""

import dataclasses
import math

import pytest
from real_data import real_dataset

from jaxmamba3d.data import read_labels
from jaxmamba3d.evaluation.protocols import PROTOCOLS, Protocol, dataset_protocol, get_protocol
from jaxmamba3d.labels import Labels


def test_published_structures():
    # The eight organs of the authors' evaluation script, by the Synapse dataset's label values.
    assert get_protocol("synapse8").classes == {
        "spleen": (1,),
        "right kidney": (2,),
        "left kidney": (3,),
        "gallbladder": (4,),
        "liver": (6,),
        "stomach": (7,),
        "aorta": (8,),
        "pancreas": (11,),
    }
    assert list(get_protocol("synapse13").classes.values()) == [(n,) for n in range(1, 14)]
    assert get_protocol("synapse8").declared_labels == get_protocol("synapse13").declared_labels
    assert get_protocol("acdc").classes == {"RV": (1,), "MLV": (2,), "LVC": (3,)}
    assert get_protocol("brats").classes == {"ET": (3,), "TC": (2, 3), "WT": (1, 2, 3)}


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=lambda p: p.name)
def test_published_conventions(protocol):
    assert protocol.hd95_unit == "voxels"
    assert (protocol.dice_both_absent, protocol.hd95_both_absent, protocol.hd95_one_absent) == (1, 0, 0)


def test_default_conventions():
    protocol = Protocol("mine", {"a": (1,)})
    assert protocol.hd95_unit == "mm"
    assert math.isnan(protocol.dice_both_absent)
    assert math.isnan(protocol.hd95_both_absent)
    assert protocol.hd95_one_absent == "diagonal"


def test_the_protocol_of_a_dataset():
    labels = Labels.from_json({"labels": {"background": 0, "RV": 1, "LV": 2}})
    assert dataset_protocol(labels).classes == {"RV": (1,), "LV": (2,)}
    content = {
        "labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3},
        "regions_class_order": [1, 2],
    }
    protocol = dataset_protocol(Labels.from_json(content))
    assert protocol.classes == {"whole": (1, 2), "core": (2,)}
    assert protocol.ignore_label == 3
    assert protocol.declared_labels == {0, 1, 2}


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        ({"a": (1,), "b": (2,)}, {1: "a", 2: "b"}),
        ({"whole": (1, 2), "posterior": (2,)}, {1: "whole without posterior", 2: "posterior"}),
        (get_protocol("brats").classes, {1: "WT without TC", 2: "TC without ET", 3: "ET"}),
        ({"all": (1, 2, 3), "x": (1,), "y": (2,)}, {1: "x", 2: "y", 3: "all without x and y"}),
        ({"a": (1, 2), "b": (2, 3)}, {1: "a without b", 2: "a and b", 3: "b without a"}),
        ({"a": (1, 2), "b": (3,)}, {1: "a (label 1)", 2: "a (label 2)", 3: "b"}),
    ],
)
def test_values_are_named_by_their_regions(classes, names):
    assert Protocol("mine", classes).names == names


@pytest.mark.parametrize(
    ("dataset", "classes"),
    [
        ("Task04_Hippocampus", {"Anterior": (1,), "Posterior": (2,)}),
        ("Dataset027_ACDC", {"RV": (1,), "MLV": (2,), "LVC": (3,)}),
    ],
)
def test_real_dataset_json(dataset, classes):
    assert dataset_protocol(read_labels(real_dataset(dataset) / "dataset.json")).classes == classes


def test_errors():
    with pytest.raises(ValueError, match="protocol must be one of acdc, brats, synapse13, synapse8, got 'x'"):
        get_protocol("x")
    with pytest.raises(ValueError, match=r"classes\['a'\] must be label values above 0"):
        Protocol("mine", {"a": (0, 1)})
    with pytest.raises(ValueError, match="ignore_label must be a label of its own, got 1"):
        Protocol("mine", {"a": (1,)}, ignore_label=1)
    with pytest.raises(ValueError, match="hd95_one_absent"):
        dataclasses.replace(get_protocol("acdc"), hd95_one_absent="worst")
