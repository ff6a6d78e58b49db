"""Unwraps a script that carries its own source packed: `exec(lzma.decompress(...))` and the like.

Only constants are decoded (eval/papers/submission/constants.py); nothing of the script runs.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from eval.papers.submission.constants import Constants, Unreadable
from eval.papers.submission.decoders import DECODERS
from eval.papers.submission.script import parse_problem, readable_tree

MOST_LAYERS = 16
RUNNERS = ("exec", "eval")
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True)
class Unwrapped:
    """The innermost source that can be read, and how it was packed.

    `layers` names each step from the outside inwards, such as exec, lzma, base85. `problem` says
    in one line why nothing further could be read, None where nothing is left to unwrap.
    """

    source: bytes
    layers: tuple[str, ...] = ()
    problem: str | None = None


def unwrap(source: bytes) -> Unwrapped:
    """The readable source within `source`. Raises nothing, whatever the bytes are."""
    layers: tuple[str, ...] = ()
    for _ in range(MOST_LAYERS):
        tree = readable_tree(source)
        if tree is None:
            return Unwrapped(source, layers, parse_problem(source))
        try:
            inner = _carried(tree, len(source))
        except Unreadable as error:
            return Unwrapped(source, layers, str(error))
        except RecursionError:
            return Unwrapped(source, layers, "its expressions are nested too deeply to be read")
        if inner is None:
            return Unwrapped(source, layers)
        source = inner.source
        layers += inner.layers
    return Unwrapped(source, layers, f"it is packed more than {MOST_LAYERS} times")


def _carried(tree: ast.Module, size: int) -> Unwrapped | None:
    """The program that a script of `size` bytes carries as a constant, None where it has none.

    Raises Unreadable where the script is a mere shell around a text that is no such constant.
    """
    constants = Constants(tree)
    own_code = size - constants.text_length
    is_shell = own_code < size // 2 or not any(isinstance(node, DEFINITIONS) for node in tree.body)
    problem: Unreadable | None = None
    found: list[Unwrapped] = []
    for call in constants.calls:
        try:
            found += _run_by(call, constants, is_shell)
        except Unreadable as error:
            problem = error
    if not found and is_shell:
        found = list(_decompressed_python(constants))
    programs = [code for code in found if is_shell or len(code.source) > own_code]
    if programs:
        return max(programs, key=lambda code: len(code.source))
    if problem is not None and is_shell:
        raise problem
    return None


def _run_by(call: ast.Call, constants: Constants, is_shell: bool) -> Iterator[Unwrapped]:
    """The constant text that a call of exec or eval runs: a packed one, or a shell's plain one.

    Raises Unreadable where the text is no constant.
    """
    runner = constants.name(call.func)
    if runner not in RUNNERS or not call.args:
        return
    constants.layers = []
    value = constants.value(call.args[0])
    code = value.encode() if isinstance(value, str) else value
    if isinstance(code, bytes) and (constants.layers or is_shell):
        yield Unwrapped(code, (runner, *constants.layers))


def _decompressed_python(constants: Constants) -> Iterator[Unwrapped]:
    """Python that a script decompresses without running it itself: into a file, for example."""
    for call in constants.calls:
        decoder = DECODERS.get(constants.name(call.func))
        if decoder is None or not decoder.compressed:
            continue
        constants.layers = []
        try:
            code = constants.value(call)
        except Unreadable:
            continue
        tree = readable_tree(code)
        if tree is not None and any(isinstance(n, ast.Import | ast.ImportFrom) for n in tree.body):
            yield Unwrapped(code, tuple(constants.layers))
