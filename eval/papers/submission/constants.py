"""Reads constant expressions of a Python source without running anything of it."""

import ast
import lzma
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from eval.papers.submission.decoders import CODECS, DECODERS, MOST_BYTES, Decoder, Undecodable

MOST_DEPTH = 100  # of expressions within expressions and names that stand for others
MOST_STEPS = 200_000  # expressions read of one module
MOST_DECODINGS = 64  # of one module

Value = Any  # None, bool, int, float, str, bytes, or a list or dict of them
NUMBERS = int | float

NAMED_VALUES: Mapping[str, Value] = {
    "lzma.FORMAT_AUTO": lzma.FORMAT_AUTO,
    "lzma.FORMAT_XZ": lzma.FORMAT_XZ,
    "lzma.FORMAT_ALONE": lzma.FORMAT_ALONE,
    "lzma.FORMAT_RAW": lzma.FORMAT_RAW,
    "lzma.FILTER_LZMA1": lzma.FILTER_LZMA1,
    "lzma.FILTER_LZMA2": lzma.FILTER_LZMA2,
    "lzma.FILTER_DELTA": lzma.FILTER_DELTA,
    "lzma.PRESET_DEFAULT": lzma.PRESET_DEFAULT,
    "lzma.PRESET_EXTREME": lzma.PRESET_EXTREME,
    "zlib.MAX_WBITS": zlib.MAX_WBITS,
}

# Methods of texts and bytes whose result is bounded by what they are called on.
METHODS = {"decode", "encode", "strip", "lstrip", "rstrip", "split", "splitlines", "lower", "upper"}


class Unreadable(Exception):
    """An expression that is no constant to this reader; the message says where and why."""


def _bytes(value: Value = b"", encoding: str = "utf-8", errors: str = "strict") -> bytes:
    if isinstance(value, int):
        raise ValueError("a number of zeros, no content")
    return value.encode(encoding, errors) if isinstance(value, str) else bytes(value)


def _str(value: Value = "", encoding: str = "utf-8", errors: str = "strict") -> str:
    if isinstance(value, bytes):
        return value.decode(encoding, errors)
    if not isinstance(value, str | int | float):
        raise ValueError("neither a text nor a number")
    return str(value)


# Builtins that only convert.
CONVERSIONS: Mapping[str, Callable[..., Value]] = {
    "bytes": _bytes,
    "bytearray": _bytes,
    "str": _str,
    "int": int,
    "float": float,
    "bool": bool,
}


class Constants:
    """The constant expressions of one module.

    `text_length` counts the characters in its texts and bytes. `calls` are all its calls.
    `layers` collects, outermost first, what the decoders took off since it was last cleared.
    """

    def __init__(self, tree: ast.Module):
        nodes = list(ast.walk(tree))  # walking a large script takes longer than parsing it
        self.imported = _imported_names(nodes)
        self.assigned = _assigned_once(tree, nodes)
        self.calls = [node for node in nodes if isinstance(node, ast.Call)]
        texts = [node.value for node in nodes if isinstance(node, ast.Constant)]
        self.text_length = sum(len(text) for text in texts if isinstance(text, str | bytes))
        self.layers: list[str] = []
        self._depth = 0
        self._steps = 0
        self._decodings = 0

    def name(self, node: ast.expr) -> str:
        """The full name of what an expression refers to: `lzma.decompress` for `L.decompress`.

        Empty where it is no name.
        """
        if isinstance(node, ast.Name):
            stands_for = self.assigned.get(node.id)
            if isinstance(stands_for, ast.Attribute):
                return self.name(stands_for)
            return self.imported.get(node.id, node.id)
        if isinstance(node, ast.Attribute):
            owner = self.name(node.value)
            return f"{owner}.{node.attr}" if owner else ""
        if isinstance(node, ast.Call):
            called = self.name(node.func)
            if called in ("__import__", "importlib.import_module") and node.args:
                return str(getattr(node.args[0], "value", ""))
            return f"{called}()" if called else ""
        return ""

    def value(self, node: ast.expr) -> Value:
        """The value of a constant expression. Raises Unreadable for any other."""
        self._depth += 1
        self._steps += 1
        try:
            if self._depth > MOST_DEPTH or self._steps > MOST_STEPS:
                raise Unreadable(f"line {node.lineno}: too many expressions to be read")
            return self._value(node)
        except (Undecodable, ValueError, TypeError, IndexError, KeyError, LookupError) as error:
            raise Unreadable(f"line {node.lineno}: {error}") from None
        except (AttributeError, ArithmeticError, MemoryError) as error:
            raise Unreadable(f"line {node.lineno}: {error}") from None
        finally:
            self._depth -= 1

    def _value(self, node: ast.expr) -> Value:
        match node:
            case ast.Constant(value=value) if value is not Ellipsis:
                return value
            case ast.Name(id=name) if name in self.assigned:
                return self.value(self.assigned[name])
            case ast.Attribute() if self.name(node) in NAMED_VALUES:
                return NAMED_VALUES[self.name(node)]
            case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items):
                return [self.value(item) for item in items]
            case ast.Dict(keys=keys, values=values) if None not in keys:
                pairs = zip(keys, values, strict=True)
                return {self.value(key): self.value(value) for key, value in pairs}
            case ast.JoinedStr(values=parts):
                return "".join(self.value(part) for part in parts)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -self.value(operand)
            case ast.BinOp():
                return self._operation(node)
            case ast.Subscript():
                return self.value(node.value)[self._index(node.slice)]
            case ast.Call():
                return self._call(node)
        raise Unreadable(f"line {node.lineno}: `{_shown(node)}` is no constant")

    def _operation(self, node: ast.BinOp) -> Value:
        left = self.value(node.left)
        right = self.value(node.right)
        both_numbers = isinstance(left, NUMBERS) and isinstance(right, NUMBERS)
        match node.op:
            case ast.Add() if both_numbers or _size(left) + _size(right) <= MOST_BYTES:
                return left + right
            case ast.Mult() if both_numbers or _size(left) * _size(right) <= MOST_BYTES:
                return left * right
            case ast.Sub():
                return left - right
            case ast.Div():
                return left / right
            case ast.FloorDiv():
                return left // right
            case ast.BitOr():
                return left | right
            case ast.LShift() if 0 <= right <= 64:
                return left << right
            case ast.Pow() if abs(left) <= 1024 and 0 <= right <= 64:
                return left**right
        raise Unreadable(f"line {node.lineno}: `{_shown(node)}` is not read")

    def _index(self, node: ast.expr) -> Value:
        if not isinstance(node, ast.Slice):
            return self.value(node)
        ends = (node.lower, node.upper, node.step)
        return slice(*(None if end is None else self.value(end) for end in ends))

    def _call(self, node: ast.Call) -> Value:
        name = self.name(node.func)
        decoder = DECODERS.get(name)
        if decoder is not None:
            return self._decode(decoder, node)
        if name == "codecs.decode" and len(node.args) > 1:
            codec = str(self.value(node.args[1])).lower().removesuffix("_codec")
            if codec in CODECS:
                return self._decode(CODECS[codec], ast.Call(node.func, node.args[:1], []))
        if name in CONVERSIONS:
            return CONVERSIONS[name](*self._arguments(node), **self._options(node))
        if name == "compile" and node.args:  # passes on what exec then runs
            return self.value(node.args[0])
        if isinstance(node.func, ast.Attribute):
            return self._method(node.func, node)
        raise Unreadable(f"line {node.lineno}: `{_shown(node)}` is no constant")

    def _decode(self, decoder: Decoder, node: ast.Call) -> bytes:
        self._decodings += 1
        if self._decodings > MOST_DECODINGS:
            raise Unreadable(f"line {node.lineno}: more than {MOST_DECODINGS} packed constants")
        self.layers.append(decoder.layer)
        return decoder(*self._arguments(node), **self._options(node))

    def _method(self, method: ast.Attribute, node: ast.Call) -> Value:
        """A method of a text or of bytes that needs no more memory than these."""
        owner = self.value(method.value)
        arguments = self._arguments(node)
        bounded = method.attr in METHODS
        if method.attr == "join" and len(arguments) == 1:
            bounded = len(owner) * len(arguments[0]) <= MOST_BYTES
        elif method.attr in ("replace", "translate"):
            bounded = _size(owner) * max(map(_size, arguments), default=1) <= MOST_BYTES
        if not isinstance(owner, str | bytes) or not bounded:
            raise Unreadable(f"line {node.lineno}: `{_shown(node)}` is no constant")
        return getattr(owner, method.attr)(*arguments, **self._options(node))

    def _arguments(self, node: ast.Call) -> list[Value]:
        return [self.value(argument) for argument in node.args]

    def _options(self, node: ast.Call) -> dict[str, Value]:
        if any(option.arg is None for option in node.keywords):
            raise Unreadable(f"line {node.lineno}: options that are no constants")
        return {str(option.arg): self.value(option.value) for option in node.keywords}


def _imported_names(nodes: Sequence[ast.AST]) -> dict[str, str]:
    """Full names by the names under which a module imports them, anywhere in it."""
    names: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                names[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def _assigned_once(tree: ast.Module, nodes: Sequence[ast.AST]) -> dict[str, ast.expr]:
    """What the names stand for that a module assigns at its top and nowhere again."""
    values: dict[str, ast.expr] = {}
    for statement in tree.body:
        if isinstance(statement, ast.Assign):
            for target in statement.targets:
                values |= _bound_to(target, statement.value)
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            values |= _bound_to(statement.target, statement.value)
    bindings: dict[str, int] = {}
    for node in nodes:
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            bindings[node.id] = bindings.get(node.id, 0) + 1
    return {name: value for name, value in values.items() if bindings[name] == 1}


def _bound_to(target: ast.expr, value: ast.expr) -> dict[str, ast.expr]:
    """Names that an assignment binds, with their values: also of `a, b = 1, 2`."""
    if isinstance(target, ast.Name):
        return {target.id: value}
    both_lists = isinstance(target, ast.Tuple | ast.List) and isinstance(value, ast.Tuple)
    if not both_lists or len(target.elts) != len(value.elts):
        return {}
    bound: dict[str, ast.expr] = {}
    for name, item in zip(target.elts, value.elts, strict=True):
        bound |= _bound_to(name, item)
    return bound


def _size(value: Value) -> int:
    """What a value takes, in about bytes, or how often a number repeats another."""
    if isinstance(value, list | dict):
        return len(value) << 10  # an item may be large itself
    return len(value) if isinstance(value, str | bytes) else abs(int(value))


def _shown(node: ast.expr) -> str:
    """The beginning of an expression as it could stand in the source."""
    text = ast.unparse(node)
    return text if len(text) <= 60 else text[:57] + "..."
