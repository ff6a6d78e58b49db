"""Finds what a public script lets its user set, without running anything of it.

The contest's scripts read environment variables; some take command-line options. What they hold
as plain constants cannot be set from outside.
"""

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from eval.papers.submission.constants import Constants, Unreadable
from eval.papers.submission.script import readable_tree

VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*[A-Z0-9]")
ENVIRONMENT = ("os.environ", "environ", "os.getenv", "getenv")
CONVERTERS = ("int", "float", "bool", "str")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
NUMBER_CLASSES = (int, float)


@dataclass(frozen=True)
class Knob:
    """One setting of a script.

    `name` is the environment variable, or the field's name for an option (`--n-layers` is
    N_LAYERS). `default` is its text, None where it is no constant. `option` is the flag as the
    command line takes it, None for an environment variable.
    """

    name: str
    default: str | None
    line: int
    option: str | None = None


@dataclass(frozen=True)
class Knobs:
    """The settings of one script.

    `mentioned` are names in capitals that stand in the script as texts: read by name in a way that
    is not understood here, perhaps. `constants` are numbers that the script assigns by name at its
    top or in a class, with the lines: nothing outside can change them.
    """

    variables: Mapping[str, Knob] = field(default_factory=dict)
    options: Mapping[str, Knob] = field(default_factory=dict)
    mentioned: frozenset[str] = frozenset()
    constants: Mapping[str, tuple[str, int]] = field(default_factory=dict)

    def default(self, name: str) -> str | None:
        """The script's own value of a setting or constant, None where it is not known."""
        for knobs in (self.variables, self.options):
            if name in knobs:
                return knobs[name].default
        return self.constants.get(name, (None, 0))[0]


def find_knobs(sources: Sequence[bytes]) -> Knobs:
    """The settings of a script and of the modules beside it, the script first.

    A source that no Python can parse has none.
    """
    found = [_knobs_of(tree) for tree in map(readable_tree, sources) if tree is not None]
    variables: dict[str, Knob] = {}
    constants: dict[str, tuple[str, int]] = {}
    for knobs in reversed(found):
        variables |= knobs.variables
    for knobs in found[:1]:  # the options of another module belong to another program
        constants |= knobs.constants
    mentioned = frozenset().union(*(knobs.mentioned for knobs in found))
    options = found[0].options if found else {}
    settable = variables.keys() | options.keys()
    fixed = {name: value for name, value in constants.items() if name not in settable}
    return Knobs(variables, options, mentioned - variables.keys(), fixed)


def _knobs_of(tree: ast.Module) -> Knobs:
    constants = Constants(tree)
    readers = _Readers(tree, constants)
    variables: dict[str, Knob] = {}
    for knob in readers.knobs():
        known = variables.get(knob.name)
        if known is None or known.default is None:
            variables[knob.name] = knob
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Constant))
    texts = (node.value for node in nodes if isinstance(node.value, str))
    mentioned = frozenset(text for text in texts if VARIABLE.fullmatch(text))
    options = {knob.name: knob for knob in _options(tree, constants)}
    return Knobs(variables, options, mentioned, dict(_named_numbers(tree, constants)))


class _Readers:
    """Places of a module that read an environment variable by its name."""

    def __init__(self, tree: ast.Module, constants: Constants):
        self.tree = tree
        self.constants = constants
        self.own = set(_functions_that_read(tree))

    def knobs(self) -> Iterator[Knob]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Subscript) and self._is_environment(node.value):
                name = getattr(node.slice, "value", None)
                if isinstance(name, str) and isinstance(node.ctx, ast.Load):
                    yield Knob(name, None, node.lineno)
            elif isinstance(node, ast.Call) and node.args and self._reads(node.func):
                name = getattr(node.args[0], "value", None)
                if isinstance(name, str) and name:
                    yield Knob(name, self._default(node), node.lineno)

    def _is_environment(self, node: ast.expr) -> bool:
        return self.constants.name(node) in ENVIRONMENT

    def _reads(self, function: ast.expr) -> bool:
        name = self.constants.name(function)
        if name in self.own or name.endswith(("environ.get", "environ.pop", "os.getenv")):
            return True
        last = name.rpartition(".")[2].lower()
        return bool(re.search(r"(?:^|_)env(?:$|_)|^getenv$", last))

    def _default(self, call: ast.Call) -> str | None:
        given = [word.value for word in call.keywords if word.arg == "default"]
        values = [*call.args[1:2], *given]
        return _constant_text(values[0], self.constants) if values else None


def _functions_that_read(tree: ast.Module) -> Iterator[str]:
    """Names of functions of a module that look up what they are given in the environment."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _looks_up(node):
            yield node.name
        is_lambda = isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda)
        if is_lambda and _looks_up(node.value):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def _looks_up(function: ast.AST) -> bool:
    """Whether a function hands its first parameter to the environment."""
    parameters = function.args.posonlyargs + function.args.args
    if not parameters:
        return False
    for node in ast.walk(function):
        is_call = isinstance(node, ast.Call) and node.args
        asked = node.args[0] if is_call else getattr(node, "slice", None)
        looked_in = node.func if is_call else getattr(node, "value", None)
        if not isinstance(asked, ast.Name) or asked.id != parameters[0].arg:
            continue
        inner = ast.walk(looked_in) if isinstance(looked_in, ast.AST) else ()
        names = {getattr(n, "attr", getattr(n, "id", "")) for n in inner}
        if names & {"environ", "getenv"}:
            return True
    return False


def _constant_text(node: ast.expr, constants: Constants) -> str | None:
    """The text of a constant as an environment variable would hold it."""
    if isinstance(node, ast.Call) and constants.name(node.func) in CONVERTERS and node.args:
        return _constant_text(node.args[0], constants)
    try:
        value = constants.value(node)
    except Unreadable:
        return None
    return _as_text(value)


def _as_text(value: object) -> str | None:
    if isinstance(value, bool):
        return str(int(value))
    return str(value) if isinstance(value, str | int | float) else None


# --- Command-line options ---


def _options(tree: ast.Module, constants: Constants) -> Iterator[Knob]:
    """Options of argparse, and fields that a script or tyro turns into options."""
    adds = [call for call in constants.calls if _is_named(call.func, "add_argument") and call.args]
    makes_options_of_fields = any(
        constants.name(c.func).startswith("tyro.") for c in constants.calls
    )
    for call in adds:
        if isinstance(call.args[0], ast.Constant):
            yield from _option_of(call, constants)
        else:  # "--" + name.replace("_", "-")
            makes_options_of_fields = True
    if makes_options_of_fields:
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and "dataclass" in ast.dump(
                ast.List(node.decorator_list)
            ):
                yield from _fields(node, constants)


def _is_named(function: ast.expr, attribute: str) -> bool:
    return isinstance(function, ast.Attribute) and function.attr == attribute


def _option_of(call: ast.Call, constants: Constants) -> Iterator[Knob]:
    """The option that an `add_argument` adds, if it takes one number or text."""
    flags = [getattr(argument, "value", None) for argument in call.args]
    long_flags = [flag for flag in flags if isinstance(flag, str) and flag.startswith("--")]
    keywords = {word.arg: word.value for word in call.keywords}
    takes_one = keywords.keys().isdisjoint({"action", "nargs", "required"})
    if not long_flags or not takes_one:
        return
    default = keywords.get("default")
    text = None if default is None else _constant_text(default, constants)
    yield Knob(variable_name(long_flags[0]), text, call.lineno, long_flags[0])


def _fields(node: ast.ClassDef, constants: Constants) -> Iterator[Knob]:
    """Fields of a dataclass that have a constant as default, bare or in `field(5, ...)`."""
    for statement in node.body:
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        value = statement.value
        if isinstance(value, ast.Call):
            named = [word.value for word in value.keywords if word.arg == "default"]
            value = next(iter([*named, *value.args]), None)
        text = None if value is None else _constant_text(value, constants)
        if text is not None:
            name = statement.target.id
            flag = "--" + name.replace("_", "-")
            yield Knob(variable_name(name), text, statement.lineno, flag)


def variable_name(text: str) -> str:
    """`N_LAYERS` for `--n-layers` and `n_layers`."""
    return text.lstrip("-").replace("-", "_").upper()


# --- Constants ---


def _named_numbers(tree: ast.Module, constants: Constants) -> Iterator[tuple[str, tuple[str, int]]]:
    """Numbers that a module assigns by name at its top or in a class."""
    bodies = [tree.body, *(node.body for node in tree.body if isinstance(node, ast.ClassDef))]
    for body in bodies:
        for statement in body:
            for name, value in _assignments(statement):
                try:
                    number = constants.value(value)
                except Unreadable:
                    continue
                if isinstance(number, NUMBER_CLASSES):
                    yield variable_name(name), (str(_as_text(number)), statement.lineno)


def _assignments(statement: ast.stmt) -> Iterator[tuple[str, ast.expr]]:
    """Names and values of an assignment: also of `a, b = 1, 2` and of an annotated one."""
    if isinstance(statement, ast.AnnAssign) and statement.value is not None:
        if isinstance(statement.target, ast.Name):
            yield statement.target.id, statement.value
    elif isinstance(statement, ast.Assign):
        for target in statement.targets:
            if isinstance(target, ast.Name):
                yield target.id, statement.value
            elif isinstance(target, ast.Tuple) and isinstance(statement.value, ast.Tuple):
                pairs = zip(target.elts, statement.value.elts, strict=False)
                yield from ((name.id, value) for name, value in pairs if isinstance(name, ast.Name))
