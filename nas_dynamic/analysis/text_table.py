"""The tables that this package prints."""

from __future__ import annotations

from collections.abc import Collection, Sequence

__all__ = ["text_table"]


def text_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], text: Collection[int] = (0,)
) -> str:
    """Return aligned columns under a header and a rule.

    Args:
        header: of the columns.
        rows: of as many cells.
        text: numbers of the columns that stand left; numbers stand right.

    Example:
        >>> print(text_table(["ranking", "τ"], [["supernet", "0.61"], ["random", "−0.02"]]))
        ranking       τ
        ───────────────
        supernet   0.61
        random    −0.02
    """
    widths = [max(map(len, cells)) for cells in zip(header, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if column in text else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in (header, *rows)
    ]
    return "\n".join([lines[0], "─" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]])
