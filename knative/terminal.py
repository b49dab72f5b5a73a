"""Output of operator commands: refusals, progress, tables."""

import os
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, TextIO

_CLEAR = "\r\x1b[K"
PLAIN_SECONDS = 10.0
"""Between two lines about the same wait, if the output is not a terminal."""


class Refused(Exception):
    """The command was not carried out. The message says what happened, why, and what to do."""


class Result(NamedTuple):
    """What a command prints."""

    text: str
    data: Any
    """The same result for --json."""


class Progress:
    """Progress lines with the elapsed seconds, on standard error: standard output has only the result."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._started = time.monotonic()
        self._is_live = self._stream.isatty()
        self._last, self._next_at = "", 0.0

    def say(self, line: str) -> None:
        """Print a step that is done."""
        clear = _CLEAR if self._is_live else ""
        write(self._stream, f"{clear}{self.seconds:5.0f} s  {line}\n")

    def wait(self, line: str) -> None:
        """Show what is being waited for: a terminal overwrites the line; otherwise print changes, not too often."""
        if self._is_live:
            write(self._stream, f"{_CLEAR}{self.seconds:5.0f} s  {line} ...")
        elif line != self._last and self.seconds >= self._next_at:
            self.say(line)
            self._last, self._next_at = line, self.seconds + PLAIN_SECONDS

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started


def write(stream: TextIO, text: str) -> None:
    """Write and flush. If the reader is gone, as with `| head`, drop the text and go on."""
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        # Otherwise Python reports the same error again when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def aligned(lines: Sequence[Sequence[str]], sides: str = "") -> list[str]:
    """Return lines of cells, each column padded to its widest cell. The last cell of a line is not padded.

    Args:
        sides: alignment of each column: ">" for right, "<" or nothing for left.
    """
    widths: dict[int, int] = {}
    for line in lines:
        for column, cell in enumerate(line[:-1]):
            widths[column] = max(widths.get(column, 0), len(cell))
    sides = sides.ljust(len(widths), "<")
    return [
        "  ".join([*(f"{cell:{sides[column]}{widths[column]}}" for column, cell in enumerate(line[:-1])), *line[-1:]])
        for line in lines
    ]
