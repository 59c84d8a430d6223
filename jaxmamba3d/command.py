"""How a command ends: exit codes, and one sentence for what its user can fix."""

import logging
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from jaxmamba3d.checks import MEMORY_ADVICE, InterruptedTraining, UnsupportedError, check_choice
from jaxmamba3d.terminal import outlive_the_terminal

TRY_AGAIN = 75
"""Exit code of a training that SIGTERM stopped, on which schedulers can restart it: EX_TEMPFAIL."""
INTERRUPTED = 130
"""Exit code of a command that Ctrl-C stopped, as shells have it."""
SIGNS_OF_ANOTHER_END = ("UNAVAILABLE", "heartbeat", "Connection closed", "Connection reset", "Barrier failed")
"""Of which JAX's errors tell, in several processes, that one of the others has ended."""


def run_command(command: Callable[[], None]) -> None:
    """Runs a command; what its user can fix ends it with one sentence instead of a traceback."""
    outlive_the_terminal()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    try:
        level = (os.environ.get("JAXMAMBA3D_LOG_LEVEL") or "INFO").upper()
        check_choice("JAXMAMBA3D_LOG_LEVEL", level, ("DEBUG", "INFO", "WARNING", "ERROR"))
        logging.getLogger("jaxmamba3d").setLevel(level)
        if level != "DEBUG":
            for handler in logging.getLogger().handlers:
                handler.addFilter(_is_not_raised_too)
        command()
    except (ValueError, OSError, FloatingPointError, UnsupportedError) as error:
        _end(f"error: {error}")
    except MemoryError as error:
        _end(f"error: this does not fit into the machine's memory; {MEMORY_ADVICE} ({error})")
    except RuntimeError as error:
        if reason := _reason_by_jax(error):
            _end(f"error: {reason} ({str(error).splitlines()[0]})")
        _end_at_once(traceback.format_exc())
        raise
    except InterruptedTraining as error:
        logging.getLogger("jaxmamba3d").warning("%s", error)
        if _is_one_of_several():
            sys.exit(TRY_AGAIN)  # JAX has them end together
        _end_compiling(TRY_AGAIN)
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command resumes from what is finished\n")
        _end_compiling(INTERRUPTED)
    except Exception:
        _end_at_once(traceback.format_exc())
        raise


def _end_compiling(code: int) -> NoReturn:
    """Ends with a code; where JAX is in use at once: at its ordinary end Python would crash into a
    compilation that goes on."""
    if "jax" in sys.modules:
        _end_now(code)
    sys.exit(code)


def _reason_by_jax(error: RuntimeError) -> str | None:
    """What JAX's error means and what helps; None of other errors."""
    # By its name, because jax is not imported where nothing needed it.
    if type(error).__name__ != "JaxRuntimeError":
        return None
    if "RESOURCE_EXHAUSTED" in str(error):
        return f"this does not fit into the device's memory; {MEMORY_ADVICE}"
    if any(sign in str(error) for sign in SIGNS_OF_ANOTHER_END) and _is_one_of_several():
        return (
            "another process has ended: its output says why, unless it was killed, maybe for lack of memory; "
            "the same command resumes"
        )
    return None


def _is_not_raised_too(record: logging.LogRecord) -> bool:
    """False for the errors that Orbax logs, in pages: it raises them, too."""
    return record.name != "absl" or record.levelno < logging.ERROR


def _end(message: str) -> NoReturn:
    """Says what is wrong, with the traceback for those who ask, and ends with code 1."""
    logging.getLogger(__name__).debug("", exc_info=True)
    _end_at_once(f"{message}\n")
    sys.exit(message)


def _end_at_once(message: str) -> None:
    """Where JAX, at a process's ordinary end, would wait for the others in vain; else does nothing."""
    if _is_one_of_several():
        sys.stderr.write(message)
        _end_now(1)


def _is_one_of_several() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def _end_now(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
