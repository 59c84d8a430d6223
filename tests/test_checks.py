"""Where settings differ, said place by place."""

import pytest

from jaxmamba3d.checks import differences


@pytest.mark.parametrize(
    ("there", "here", "expected"),
    [
        ({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 2}}, []),
        ({"b": {"d": 4, "c": 2}}, {"b": {"c": 3, "d": 5}}, ["b.c 2 there, 3 here", "b.d 4 there, 5 here"]),
        ({"a": 1}, {}, ["a 1 there, None here"]),
        ({}, {"b": {"c": 2}}, ["b None there, {'c': 2} here"]),
        ({"a": [1, 2]}, {"a": [2, 1]}, ["a [1, 2] there, [2, 1] here"]),
    ],
)
def test_each_place_is_a_phrase(there, here, expected):
    assert list(differences(there, here)) == expected
