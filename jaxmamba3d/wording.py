"""Numbers and lists as people read them."""

import math
from collections.abc import Iterable, Sequence

FEW = 5


def counted(number: int, noun: str) -> str:
    """A number and what it counts."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def sizes(values: Iterable[float]) -> str:
    """Numbers along axes, rounded to 4 digits."""
    return " x ".join(f"{value:.4g}" for value in values)


def enumerated(values: Iterable[object], nothing: str = "none") -> str:
    """Things in a row."""
    return ", ".join(map(str, values)) or nothing


def first_few(names: Sequence[str]) -> str:
    """Names in a row, of many the first few and how many more."""
    rest = len(names) - FEW
    return enumerated(names) if rest <= 0 else f"{enumerated(names[:FEW])} and {rest:,} more"


def number(value: float) -> str:
    """Four digits, and a dash for NaN."""
    return "-" if math.isnan(value) else f"{value:.4g}"


def duration(seconds: float) -> str:
    """In the two largest of days, hours, minutes and seconds."""
    if math.isnan(seconds):
        return "unknown"
    rest, parts = round(seconds), []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count or parts:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"


def memory(count: int) -> str:
    """Bytes in the unit, MiB or GiB, that suits them."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def markdown_table(titles: Sequence[str], rows: Iterable[Sequence[object]], *, words: int = 1) -> str:
    """A Markdown table of so many columns of words, then numbers."""
    rules = ["---" if column < words else "---:" for column in range(len(titles))]
    return "".join("| " + " | ".join(map(str, row)) + " |\n" for row in (titles, rules, *rows))
