"""What the commands of operators print: refusals, progress, tables."""

import os
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, TextIO

_CLEAR = "\r\x1b[K"
PLAIN_SECONDS = 10.0
"""Between two lines of what is waited for, where there is no terminal."""


class Refused(Exception):
    """A command was not carried out; the message says what happened, why, and what to do."""


class Result(NamedTuple):
    """What a command prints."""

    text: str
    data: Any
    """The same for --json."""


class Progress:
    """Lines with the seconds since the start, on standard error, so that standard output holds the result alone."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._started = time.monotonic()
        self._is_live = self._stream.isatty()
        self._last, self._next_at = "", 0.0

    def say(self, line: str) -> None:
        """Tells what is done."""
        clear = _CLEAR if self._is_live else ""
        write(self._stream, f"{clear}{self.seconds:5.0f} s  {line}\n")

    def wait(self, line: str) -> None:
        """Tells what is waited for: over the last such line in a terminal, else when it has changed, now and then."""
        if self._is_live:
            write(self._stream, f"{_CLEAR}{self.seconds:5.0f} s  {line} ...")
        elif line != self._last and self.seconds >= self._next_at:
            self.say(line)
            self._last, self._next_at = line, self.seconds + PLAIN_SECONDS

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started


def write(stream: TextIO, text: str) -> None:
    """Writes at once. If nobody reads any more, as behind `| head`, the text is dropped and the command goes on."""
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        # Otherwise Python reports the same error when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def aligned(lines: Sequence[Sequence[str]], sides: str = "") -> list[str]:
    """Lines of cells, each column as wide as its widest cell. The last cell of a line is as long as it is.

    Args:
        sides: where the cells of each column stand: ">" at the right; "<", or nothing said, at the left.
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
