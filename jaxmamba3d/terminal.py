"""Standard error, to which progress and messages go."""

import io
import sys


class _MayBeGone(io.FileIO):
    """A file of which nothing hangs on what is written to it."""

    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def outlive_the_terminal() -> None:
    """From now on, work goes on, unseen, when nobody reads standard error any more: a closed connection."""
    # What a test or a notebook has put in its place is left alone.
    if sys.stderr is not None and sys.stderr is sys.__stderr__:
        raw = _MayBeGone(sys.stderr.fileno(), "w", closefd=False)
        sys.stderr = io.TextIOWrapper(
            io.BufferedWriter(raw), sys.stderr.encoding, "backslashreplace", line_buffering=True
        )
