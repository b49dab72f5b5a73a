"""Read the age identities that open backups, from a file or standard input."""

import re
import sys
from pathlib import Path

from knative.terminal import Refused

TAKEN = "the identity is taken from standard input"
"""Printed once the identity is read, so that the writer to standard input can stop."""
_IDENTITY = re.compile(r"AGE-SECRET-KEY-1[02-9AC-HJ-NP-Z]{58}")


def read(file: str) -> tuple[str, ...]:
    """Return all identities in a file of age-keygen, or in the first line of standard input (-) that has one.

    Raises:
        Refused: there is no identity, or the file cannot be read.
    """
    try:
        if file == "-":  # in a pod it may never be closed
            found = next(filter(None, map(_in, sys.stdin)), ())
        else:
            found = tuple(one for line in Path(file).read_text().splitlines() for one in _in(line))
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"Nothing was changed. Cannot read the identity: {error}.") from None
    if not found:
        raise Refused("Nothing was changed. The input of --identity has no age identity (AGE-SECRET-KEY-1...).")
    return found


def _in(line: str) -> tuple[str, ...]:
    return () if line.startswith("#") else tuple(_IDENTITY.findall(line))
