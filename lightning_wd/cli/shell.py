"""What a command shares with the shell it runs in: the working directory, and the pipe that reads its output."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["reader_may_leave", "see_working_directory"]


def see_working_directory() -> None:
    """Let modules of the working directory be imported, as ``python -m`` does."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """Let ``| head`` close the pipe without changing the exit status."""
    try:
        yield
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as error:  # rich exits with status 1, which would mean a finding
        if not isinstance(error.__context__ or error, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
