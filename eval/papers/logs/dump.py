"""The source code that a public log prints, told from the lines of the run.

Scripts print themselves between rulers of any kind, or without any. What parses as Python is
code; where the code is of a newer Python than ours, the first line that only a run prints ends it.
"""

import ast
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

CODE_HEAD = re.compile(r"^(?:import \w|from \w[\w.]* import|\"\"\"|'''|#|@\w|def \w|class \w)")
IMPORTS = ("import ", "from ")
CODE_NODES = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
# What only a running script prints, with its numbers filled in.
RUN_LINE = re.compile(
    r"^(?:Running (?:Python|PyTorch) \d|val_bpb:enabled|train_loader:dataset|val_loader:"
    r"|(?:model_params|world_size|seed|warmup_step|step):\s*\d)"
)
RULER = re.compile(r"^([=\-*_~+])\1{9,}$")
FEWEST_CODE_LINES = 3
SHORTEST_SCRIPT = 60  # characters: less may stand in a log by chance
MOST_CODE_LINES = 8000  # the longest public script has 3,800
MOST_TRIES = 12  # to find where code ends, and as often where it begins


@dataclass(frozen=True)
class Dump:
    """Indices of a dump's first line and of the one after its last."""

    begin: int
    end: int


def find_dumps(texts: Sequence[str], scripts: Sequence[Sequence[str]]) -> list[Dump]:
    """All dumps among a log's lines, in order.

    `texts` are the log's lines without the blank ones, `scripts` the likewise reduced lines of
    the scripts that may have written it. Runs of several versions may share a log.
    """
    known = [script for script in scripts if sum(map(len, script)) >= SHORTEST_SCRIPT]
    found = _copies(texts, known)
    tries = MOST_TRIES
    begin = 0
    while tries > 0:
        head = _next_head(texts, begin)
        if head is None:
            break
        covering = [dump for dump in found if dump.begin <= head < dump.end]
        if covering:
            begin = covering[0].end
            continue
        tries -= 1
        end = _code_end(texts, head)
        if end is not None:
            known.append(texts[head:end])
            found = _copies(texts, known)
        begin = head + 1 if end is None else end
    return found


def code_lines(source: bytes) -> list[str]:
    """The lines of a script as they stand in a log's list of lines."""
    text = source.decode("utf-8", "replace").replace("\ufeff", "")
    return [line.rstrip() for line in text.split("\n") if line.strip()]


def _copies(texts: Sequence[str], scripts: Sequence[Sequence[str]]) -> list[Dump]:
    """Every place where the lines of a script stand in a row."""
    found: list[Dump] = []
    heads = {script[0] for script in scripts}
    places = [i for i, text in enumerate(texts) if text in heads]
    for begin in places:
        if found and begin < found[-1].end:
            continue
        for script in scripts:
            end = begin + len(script)
            if list(texts[begin:end]) == list(script):
                found.append(Dump(begin, end))
                break
    return found


def _next_head(texts: Sequence[str], first: int) -> int | None:
    """Index of the first line from `first` on that could begin a script, imports near behind."""
    for i in range(first, len(texts)):
        if CODE_HEAD.match(texts[i]):
            near = texts[i : i + MOST_CODE_LINES]
            return i if any(text.startswith(IMPORTS) for text in near) else None
    return None


def _code_end(texts: Sequence[str], begin: int) -> int | None:
    """Index behind the code that begins at `begin`; None where nothing there is a script."""
    end = min(len(texts), begin + MOST_CODE_LINES)
    for _ in range(MOST_TRIES):
        tree, broken = _parsed(texts[begin:end])
        if tree is None:
            end = begin + broken
            if end < len(texts) and texts[end][0].isspace():
                return _end_of_newer(texts, begin, end)
            if end - begin < FEWEST_CODE_LINES:
                return None
            continue
        if not any(isinstance(node, CODE_NODES) for node in tree.body):
            return None
        return begin + _last_line_of_code(tree)
    return None


def _end_of_newer(texts: Sequence[str], begin: int, broken: int) -> int | None:
    """Index behind code that goes on after a line which only a newer Python understands."""
    end = _first_run_line(texts, broken)
    imports = end is not None and any(text.startswith(IMPORTS) for text in texts[begin:end])
    return end if imports else None


def _parsed(texts: Sequence[str]) -> tuple[ast.Module | None, int]:
    """The syntax tree of lines, or how many of them stand before the one that is no Python."""
    try:
        return ast.parse("\n".join(texts)), len(texts)
    except SyntaxError as error:
        return None, max(0, min(len(texts), error.lineno or 0) - 1)
    except (ValueError, RecursionError, MemoryError):
        return None, 0


def _last_line_of_code(tree: ast.Module) -> int:
    """Lines up to the last statement that does something.

    A run's `seed:1337` or `logs/name.txt` is Python as well: a name with an annotation, and a
    quotient.
    """
    body = list(tree.body)
    while len(body) > 1 and _is_idle(body[-1]):
        body.pop()
    return body[-1].end_lineno


def _is_idle(node: ast.stmt) -> bool:
    if isinstance(node, ast.AnnAssign):
        return node.value is None
    return isinstance(node, ast.Expr) and not isinstance(node.value, ast.Call | ast.Await)


def _first_run_line(texts: Sequence[str], first: int) -> int | None:
    """Index of the first line from `first` on that only a run prints, before it its ruler."""
    for i in range(first, min(len(texts), first + MOST_CODE_LINES)):
        if RUN_LINE.match(texts[i]):
            rulers = itertools.takewhile(RULER.match, reversed(texts[first:i]))
            return i - len(list(rulers))
    return None
