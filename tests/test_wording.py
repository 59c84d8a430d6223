"""Numbers and lists as people read them."""

import math

import pytest

from jaxmamba3d.wording import counted, duration, first_few, markdown_table, memory, number


@pytest.mark.parametrize(
    ("count", "words"), [(1, "a"), (5, "a, b, c, d, e"), (6, "a, b, c, d, e and 1 more")]
)
def test_of_many_names_the_first_few_are_said(count, words):
    assert first_few("abcdef"[:count]) == words


def test_thousands_are_set_apart():
    assert first_few([str(n) for n in range(1205)]) == "0, 1, 2, 3, 4 and 1,200 more"
    assert counted(1205, "case") == "1,205 cases"
    assert counted(1, "case") == "1 case"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (59.6, "1 min 0 s"),
        (3600 + 61, "1 h 1 min"),
        (2 * 86400, "2 d 0 h"),
        (math.nan, "unknown"),
    ],
)
def test_durations_have_two_units(seconds, words):
    assert duration(seconds) == words


def test_numbers_have_four_digits():
    assert [number(value) for value in (0.123456, 12345.6, math.nan)] == ["0.1235", "1.235e+04", "-"]
    assert [memory(2**20), memory(2**30 - 1), memory(2**30)] == ["1.0 MiB", "1024.0 MiB", "1.0 GiB"]


def test_tables_in_markdown():
    assert markdown_table(["net", "ms"], [("a", 1)]) == "| net | ms |\n| --- | ---: |\n| a | 1 |\n"
