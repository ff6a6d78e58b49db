"""Prints tables: aligned columns for a terminal, and Markdown."""

import io
import textwrap
from collections.abc import Iterable, Sequence

# In characters: no cell is ever folded or cut, however narrow the terminal is.
UNLIMITED = 1_000_000


def aligned(
    rows: Iterable[Sequence[str]], widths: Sequence[int] = (), gap: int = 1, indent: int = 0
) -> str:
    """Plain text with one line for each row: no colours, no borders, nothing cut.

    `widths` are the smallest widths of the first columns, `gap` lies between two columns and
    `indent` before the first, all in characters. A terminal, a pipe and a file get the same text.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    texts = []
    for row in rows:
        texts.append([Text(printable(cell)) for cell in row])
    count = max(map(len, texts), default=0)
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, gap, 0, 0))
    for i in range(count):
        smallest = widths[i] if i < len(widths) else None
        table.add_column(min_width=smallest, no_wrap=True, overflow="ignore")
    for row in texts:
        table.add_row(*row)
    console = Console(file=io.StringIO(), width=UNLIMITED, color_system=None)
    with console.capture() as capture:
        console.print(table, crop=False)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    return textwrap.indent("\n".join(lines), " " * indent)


def printable(cell: str) -> str:
    """One line of text that takes as much room as it has characters.

    Tabs become spaces, and what a terminal would obey or not show is escaped: nobody can hide
    text from a reader.
    """
    shown = []
    for character in cell.expandtabs(4):
        known = character.isprintable()
        shown.append(character if known else character.encode("unicode_escape").decode())
    return "".join(shown)


def markdown_table(
    head: Sequence[str], rows: Iterable[Sequence[str]], alignment: Sequence[str] = ()
) -> str:
    """A Markdown table. `alignment` holds `---` or `---:` for each column."""
    rule = f"|{'|'.join(alignment)}|" if alignment else markdown_row(["---"] * len(head))
    return "\n".join([markdown_row(head), rule, *map(markdown_row, rows)])


def markdown_row(cells: Sequence[str]) -> str:
    """One row; an empty cell is a single space."""
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)
