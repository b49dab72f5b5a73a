"""Text in columns, as the commands print it."""

from collections.abc import Sequence


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
