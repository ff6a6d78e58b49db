"""The style of the whole tree: one idea a line, short functions, and a submission in one file.

Records and the fixtures' submissions are left out: each is frozen, or written as an entrant would.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "train_gpt.py"
LEFT_OUT = ("records/", "tests/fixtures/submissions/")
MOST_FUNCTION_LINES = 60
MOST_FILE_LINES = 500
MOST_TOKENS_PER_LINE = 8.2
SECTIONS = range(1, 13)  # of train_gpt.py

COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
ASSIGNMENTS = (ast.Assign, ast.AugAssign, ast.AnnAssign)
MUTATORS = {
    *("add", "append", "appendleft", "clear", "discard", "extend", "extendleft", "insert"),
    *("move_to_end", "pop", "popitem", "popleft", "remove", "reverse", "setdefault", "sort"),
    "update",
}
Finding = tuple[int, str]  # line number and what is wrong there


# --- Reading the tree ---


@cache
def sources() -> dict[str, str]:
    """Source of every tracked Python file by its path from the root, without `LEFT_OUT`."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "*.py"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listing.returncode:
        pytest.skip("needs a git checkout, which knows the tracked files")
    names = [name for name in listing.stdout.split("\0") if name.endswith(".py")]
    kept = [name for name in names if not name.startswith(LEFT_OUT)]
    paths = {name: ROOT / name for name in kept}
    return {name: path.read_text("utf-8") for name, path in paths.items() if path.is_file()}


@cache
def tree_of(source: str) -> ast.Module:
    return ast.parse(source)


@cache
def parents_of(source: str) -> dict[ast.AST, ast.AST]:
    """Every node of a source but the module, with the node around it. Walking a tree is slow."""
    parents = {}
    for node in ast.walk(tree_of(source)):
        for child in ast.iter_child_nodes(node):
            parents[child] = node
    return parents


def ancestors(node: ast.AST, source: str) -> Iterator[ast.AST]:
    """The nodes around a node, innermost first."""
    parents = parents_of(source)
    while node in parents:
        node = parents[node]
        yield node


# --- Rules for every file ---


def nested_comprehensions(source: str) -> Iterator[Finding]:
    for node in parents_of(source):
        if not isinstance(node, COMPREHENSIONS):
            continue
        if len(node.generators) > 1:
            yield node.lineno, "a comprehension with two loops"
        if any(isinstance(outer, COMPREHENSIONS) for outer in ancestors(node, source)):
            yield node.lineno, "a comprehension inside a comprehension"


def walruses_inside_expressions(source: str) -> Iterator[Finding]:
    for node in parents_of(source):
        if not isinstance(node, ast.NamedExpr):
            continue
        around = parents_of(source)[node]
        if not (isinstance(around, ast.If | ast.While) and around.test is node):
            yield node.lineno, "a walrus that is not the whole test of an if or a while"


def long_functions(source: str) -> Iterator[Finding]:
    for node in parents_of(source):
        if isinstance(node, FUNCTIONS):
            lines = node.end_lineno - node.lineno + 1
            if lines > MOST_FUNCTION_LINES:
                yield node.lineno, f"{node.name} has {lines} lines"


def lambdas_with_a_name(source: str) -> Iterator[Finding]:
    """A function with a name is a def."""
    for node in parents_of(source):
        if not isinstance(node, ast.Lambda):
            continue
        around = parents_of(source)[node]
        while isinstance(around, ast.IfExp):
            around = parents_of(source)[around]
        if isinstance(around, ast.Assign | ast.AnnAssign | ast.NamedExpr):
            yield node.lineno, "a lambda that is assigned to a name"


def long_files(source: str) -> Iterator[Finding]:
    lines = source.count("\n")
    if lines > MOST_FILE_LINES:
        yield lines, f"{lines} lines"


def offenders(rule: Callable[[str], Iterator[Finding]], spared: tuple[str, ...] = ()) -> list[str]:
    """`file:line: what` for every place in the tree that breaks a rule."""
    found = []
    for name, source in sources().items():
        if name not in spared:
            found += [f"{name}:{line}: {what}" for line, what in sorted(set(rule(source)))]
    return found


@pytest.mark.parametrize(
    ("rule", "spared"),
    [
        (nested_comprehensions, ()),
        (walruses_inside_expressions, ()),
        (long_functions, ()),
        (lambdas_with_a_name, ()),
        (long_files, (SCRIPT.name,)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_file_keeps_the_rule(rule, spared):
    found = offenders(rule, spared)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("rule", "source", "lines"),
    [
        (nested_comprehensions, "x = [b for a in c for b in a]", [1]),
        (nested_comprehensions, "x = [sum(b for b in a)\n for a in c]", [1]),
        (nested_comprehensions, "x = [a for a in c]\ny = {a for a in c}", []),
        (walruses_inside_expressions, "if x := f():\n    pass\nwhile x := f():\n    pass", []),
        (walruses_inside_expressions, "if (x := f()) > 1:\n    pass\ng(x := 1)", [1, 3]),
        (long_functions, "def f():\n" + "    x = 1\n" * 59, []),
        (long_functions, "def f():\n" + "    x = 1\n" * 60, [1]),
        (lambdas_with_a_name, "f = lambda: 1\ng = f(key=lambda: 1)\nh = [lambda: 1]", [1]),
        (lambdas_with_a_name, "f = (lambda: 1) if x else None", [1]),
        (long_files, "\n" * 500, []),
        (long_files, "\n" * 501, [501]),
    ],
)
def test_a_rule_sees_what_breaks_it(rule, source, lines):
    assert [line for line, _ in rule(source)] == lines


@pytest.mark.parametrize(
    "command", [["check", "--output-format=concise"], ["format", "--check"]], ids=" ".join
)
def test_lint_and_format(command):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command, *sources()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# --- Rules for the submission, train_gpt.py ---


def script() -> str:
    return SCRIPT.read_text("utf-8")


def lexical_tokens(source: str) -> int:
    """Names, operators, numbers and strings; an f-string is one, however Python splits it."""
    counted = 0
    depth = 0
    f_string_start = getattr(tokenize, "FSTRING_START", None)  # since Python 3.12
    f_string_end = getattr(tokenize, "FSTRING_END", None)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == f_string_start:
            counted += depth == 0
            depth += 1
        elif token.type == f_string_end:
            depth -= 1
        elif depth == 0:
            counted += token.type in (tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING)
    return counted


def imports_of_the_repository(source: str) -> Iterator[Finding]:
    packages = {path.parent.name for path in ROOT.glob("*/*.py")}
    modules = {path.stem for path in ROOT.glob("*.py")}
    for node in parents_of(source):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "."]
        for name in names:
            top = name.split(".")[0]
            if top in packages | modules or not top:
                yield node.lineno, f"imports {name}"


def global_statements_and_evaluated_text(source: str) -> Iterator[Finding]:
    for node in parents_of(source):
        if isinstance(node, ast.Global):
            yield node.lineno, f"global {', '.join(node.names)}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("exec", "eval"):
            yield node.lineno, f"calls {ast.unparse(node.func)}"


def is_main_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def work_at_module_level(source: str) -> Iterator[Finding]:
    """Anything but the docstring, imports, definitions, assignments and the main guard."""
    allowed = (ast.Import, ast.ImportFrom, *FUNCTIONS, ast.ClassDef, ast.Assign, ast.AnnAssign)
    body = tree_of(source).body
    docstring = body[:1] if ast.get_docstring(tree_of(source)) is not None else []
    for node in body[len(docstring) :]:
        if not isinstance(node, allowed) and not is_main_guard(node):
            yield node.lineno, ast.unparse(node).partition("\n")[0]


def capital_names(source: str) -> set[str]:
    """Names in capitals that a module assigns at its top."""
    names = set()
    for node in tree_of(source).body:
        if isinstance(node, ASSIGNMENTS):
            bound = [child.id for child in ast.walk(node) if is_bound(child)]
            names |= {name for name in bound if name.isupper()}
    return names


def is_bound(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)


def is_written(node: ast.AST, source: str) -> bool:
    """Whether a name, attribute or item is bound, deleted or calls a method that changes it."""
    if isinstance(getattr(node, "ctx", None), ast.Store | ast.Del):
        return True
    around = parents_of(source).get(node)
    called = isinstance(around, ast.Attribute) and around.attr in MUTATORS
    return called and isinstance(parents_of(source).get(around), ast.Call)


def owner(node: ast.AST) -> str:
    """The name that an attribute or an item belongs to: `X` for `X.a[1].b`; empty without one."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Starred):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def written_globals(source: str) -> Iterator[Finding]:
    """Places inside functions that assign, augment, delete or mutate a global in capitals."""
    capitals = capital_names(source)
    for node in parents_of(source):
        if not any(isinstance(outer, FUNCTIONS) for outer in ancestors(node, source)):
            continue
        written = owner(node) if is_written(node, source) else ""
        if written in capitals:
            yield node.lineno, f"writes to {written}"


def test_the_script_has_one_idea_a_line():
    tokens_per_line = lexical_tokens(script()) / script().count("\n")
    assert tokens_per_line <= MOST_TOKENS_PER_LINE, f"{tokens_per_line:.2f} tokens a line"


def test_the_script_has_its_sections_in_order():
    banners = re.findall(r"^# --- (\d+)\. ", script(), flags=re.MULTILINE)
    assert [int(number) for number in banners] == list(SECTIONS)


@pytest.mark.parametrize(
    "rule",
    [
        imports_of_the_repository,
        global_statements_and_evaluated_text,
        work_at_module_level,
        written_globals,
    ],
)
def test_the_script_keeps_the_rule(rule):
    found = [f"{SCRIPT.name}:{line}: {what}" for line, what in sorted(rule(script()))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("rule", "source", "lines"),
    [
        (
            imports_of_the_repository,
            "import math\nfrom eval.rules import Rules\nimport data",
            [2, 3],
        ),
        (imports_of_the_repository, "def f():\n    from . import x", [2]),
        (global_statements_and_evaluated_text, "def f():\n    global x\n    eval('1')", [2, 3]),
        (
            work_at_module_level,
            '"""Doc."""\nimport os\nX = 1\nif __name__ == "__main__":\n  f()',
            [],
        ),
        (work_at_module_level, '"""Doc."""\nprint(1)\nif True:\n    x = 1', [2, 3]),
        (written_globals, "X = {}\nX['a'] = 1\nX.update(b=1)\ndef f():\n    return X['a']", []),
        (written_globals, "X = {}\ndef f():\n    X['a'] = 1\n    X.update(b=1)", [3, 4]),
        (written_globals, "X: int = 1\ndef f():\n    X += 1\n    del X\n    X.y[0] = 1", [3, 4, 5]),
    ],
)
def test_a_rule_for_the_script_sees_what_breaks_it(rule, source, lines):
    assert sorted(line for line, _ in rule(source)) == lines


def test_tokens_are_counted():
    assert lexical_tokens('x = f(1, "a b")  # comment\n\n"""Doc\nstring"""\n') == 9
    assert lexical_tokens("f'{a + b} c'\n") == 1
