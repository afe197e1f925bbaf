"""The exit status of a command, and the line that reports an error."""

from __future__ import annotations

import sys
from collections.abc import Callable

from safetensors import SafetensorError

from sskd_fast import _interrupt, ranks
from sskd_fast.data.errors import DataError
from sskd_fast.files import reason
from sskd_fast.models.checkpoint import CheckpointError
from sskd_fast.models.pretrained import FoundationError
from sskd_fast.typed_settings import ConfigError


def status_of(work: Callable[[], None], again: str = "the same command with --resume") -> int:
    """The exit status of `work`; an error is printed as one line, after its notes.

    again: the command that resumes after an interruption, in words.
    """
    try:
        with _interrupt.orderly():
            work()
    except (ConfigError, DataError, CheckpointError, FoundationError, SafetensorError, ImportError) as error:
        print(f"error: {_notes(error)}{error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {_notes(error)}{reason(error)}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"error: {_notes(error)}{error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if not ranks.lost(error):
            raise
        print(
            f"\nerror: another process of the job has ended; {again} goes on from the last saved step", file=sys.stderr
        )
        return 1
    except KeyboardInterrupt as error:
        print(f"\n{_notes(error)}interrupted: {again} goes on from the last saved step", file=sys.stderr)
        return 143 if isinstance(error, _interrupt.Terminated) else 130
    return 0


def _notes(error: BaseException) -> str:
    return "".join(getattr(error, "__notes__", ()))
