"""Standard error, to which progress and messages go."""

import contextlib
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
    """From now on, work goes on, unseen, when nobody reads standard error any more, as of a process that
    outlived its connection."""
    # What a test or a notebook has put in its place, or made without a file, is left alone.
    if sys.stderr is None or sys.stderr is not sys.__stderr__:
        return
    with contextlib.suppress(io.UnsupportedOperation):
        raw = _MayBeGone(sys.stderr.fileno(), "w", closefd=False)
        sys.stderr = io.TextIOWrapper(
            io.BufferedWriter(raw), sys.stderr.encoding, "backslashreplace", line_buffering=True
        )
