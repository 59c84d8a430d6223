"""Labels as nnU-Net's label manager reads them, of both layouts of dataset.json."""

import pytest

from jaxmamba3d.labels import Labels

REGIONS = {
    "labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4},
    "regions_class_order": [1, 2, 3],
}


def test_classes_are_in_the_order_of_their_values():
    labels = Labels.from_json({"labels": {"background": 0, "right": 2, "left": 1}})
    assert labels.structures == {"left": (1,), "right": (2,)}
    assert list(labels.structures) == ["left", "right"]
    assert (labels.outputs, labels.regions, labels.ignore) == (3, None, None)


def test_the_decathlon_writes_names_by_value():
    labels = Labels.from_json({"labels": {"2": "Posterior", "0": "anything", "1": "Anterior"}})
    assert labels == Labels({"background": (0,), "Anterior": (1,), "Posterior": (2,)})


def test_regions_are_in_the_order_of_the_file():
    labels = Labels.from_json(REGIONS)
    assert labels.regions == ((1, 2, 3), (2, 3), (3,))
    assert (labels.outputs, labels.ignore) == (3, 4)
    assert labels.values == (0, 1, 2, 3)
    assert labels.declared == {0, 1, 2, 3, 4}
    assert labels.annotated == (-1, 0, 1, 2, 3)


def test_lists_of_one_value_are_classes():
    labels = Labels.from_json({"labels": {"background": 0, "a": [1], "b": [2]}})
    assert labels.regions is None
    assert labels.outputs == 3


@pytest.mark.parametrize("content", [REGIONS, {"labels": {"background": 0, "a": 1, "ignore": 2}}])
def test_json_gives_equal_labels_back(content):
    labels = Labels.from_json(content)
    assert labels.to_json() == content
    assert Labels.from_json(labels.to_json()) == labels


@pytest.mark.parametrize(
    ("labels", "order", "message"),
    [
        (None, None, "labels must be a table of names and values, got None"),
        ({"a": 1}, None, "labels must be with background 0"),
        ({"background": 0}, None, "background and at least one class"),
        ({"background": 0, "mean": 1}, None, "labels must be of names other than mean"),
        ({"background": 0} | {f"{n}": n for n in range(1, 257)}, None, "labels must be at most 256, got 257"),
        ({"background": 0, "ignore": 1}, None, "background and at least one class"),
        ({"background": 0, "a": 2}, None, r"0, 1, 2, ... without gaps, got \[0, 2\]"),
        ({"background": 0, "a": 1.5}, None, "values of labels must be whole numbers"),
        ({"background": 0, "a": True}, None, "values of labels must be whole numbers"),
        ({"background": 0, "a": []}, None, "values of labels must be whole numbers"),
        ({"background": 0, "a": 2, "ignore": 1}, None, "without gaps"),
        ({"background": 0, "a": 1, "ignore": [2, 3]}, None, "`ignore` is one value, the highest"),
        ({"0": "background", "1": "a", "2": "a"}, None, "of different names and values"),
        ({"background": 0, "a": [0, 1], "b": 2}, [1, 2], r"labels: a must be without the background, 0, got"),
        ({"background": 0, "a": [1, 2]}, None, r"one value for each of the 1 regions \['a'\], .*, got None"),
        ({"background": 0, "a": [1, 2], "b": 2}, [1], "one value for each of the 2 regions"),
        ({"background": 0, "a": [1, 2], "b": 2}, [1, 7], r"2 regions .*, of the labels' \[0, 1, 2\], got"),
    ],
)
def test_what_is_no_labels(labels, order, message):
    with pytest.raises(ValueError, match=message):
        Labels.from_json({"labels": labels, "regions_class_order": order})
