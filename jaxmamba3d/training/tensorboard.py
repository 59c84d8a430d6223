"""What TensorBoard shows of a training."""

import time
from pathlib import Path

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from jaxmamba3d.files import full_disks_named


class EventFile:
    """A TensorBoard file, written by the caller itself: an error of the disk is raised where it happens.

    A `SummaryWriter` has a thread write, whose death leaves the caller waiting for ever.

    Args:
        folder: of the files; made if missing.
        start_step: the step that comes next; TensorBoard hides what earlier files hold at or after it.
    """

    def __init__(self, folder: Path, start_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        # Trainings started in the same second would share a file, but for its ending.
        self._writer = EventsWriter(str(folder / "events"), filename_suffix=f".{start_step}")
        self._add(start_step, session_log=SessionLog(status=SessionLog.START))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Adds a point of a curve."""
        self._add(step, summary=summary.scalar(name, value))

    def add_image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Adds a picture, [height, width, 3] in uint8."""
        self._add(step, summary=summary.image(name, pixels, dataformats="HWC"))

    def flush(self) -> None:
        """Puts everything added on disk."""
        with full_disks_named(self._folder):
            self._writer.flush()

    def close(self) -> None:
        """Ends the file."""
        with full_disks_named(self._folder):
            self._writer.close()

    def _add(self, step: int, **content: Summary | SessionLog) -> None:
        with full_disks_named(self._folder):
            self._writer.write_event(Event(wall_time=time.time(), step=step, **content))
