"""The age identities that open backups, as an operator gives them: in a file, or on standard input."""

import re
import sys
from pathlib import Path

from knative.terminal import Refused

TAKEN = "the identity is taken from standard input"
"""Said when no more is read: who feeds standard input may let go."""
_IDENTITY = re.compile(r"AGE-SECRET-KEY-1[02-9AC-HJ-NP-Z]{58}")


def read(file: str) -> tuple[str, ...]:
    """All that a file holds, as age-keygen writes it; of standard input (-) all of the first line that has one.

    Raises:
        Refused: there is none, or the file cannot be read.
    """
    try:
        if file == "-":  # in a pod nobody may close it
            found = next(filter(None, map(_in, sys.stdin)), ())
        else:
            found = tuple(one for line in Path(file).read_text().splitlines() for one in _in(line))
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"Nothing was changed. The identity cannot be read: {error}.") from None
    if not found:
        raise Refused("Nothing was changed. --identity names nothing that holds an age identity (AGE-SECRET-KEY-1...).")
    return found


def _in(line: str) -> tuple[str, ...]:
    return () if line.startswith("#") else tuple(_IDENTITY.findall(line))
