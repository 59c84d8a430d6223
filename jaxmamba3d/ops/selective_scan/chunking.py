"""How time is cut into chunks."""

import math

SHORTEST, LONGEST = 128, 256


def chunk_length(length: int) -> int:
    """Tokens in a chunk: the divisor of `length` nearest to LONGEST if there is one in range.

    Chunks that divide the length need no padding. Volumes nearly always have one; where none lies in
    SHORTEST..LONGEST, the chunk that pads least is taken, the longest among equals.
    """
    if length <= LONGEST:
        return length
    return min(range(LONGEST, SHORTEST - 1, -1), key=lambda chunk: -length % chunk)


def chunk_count(length: int, chunk: int) -> int:
    """Chunks that hold `length` tokens, the last one possibly padded."""
    return math.ceil(length / chunk)
