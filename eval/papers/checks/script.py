"""The record's script as the checks read it: unwrapped, parsed, and with the files it loads."""

import ast
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from eval.papers.folder import Record
from eval.papers.submission.script import Version, readable_tree, tree_of
from eval.papers.submission.unwrap import Unwrapped, unwrap

OPENERS = ("ImportError", "ModuleNotFoundError", "Exception", "BaseException", "OSError")


WRAPPING = re.compile(
    rb"(?<![\w.])(?:exec|eval)\s*[(\]),]|b(?:16|32|64|85)decode|a85decode|fromhex|unhexlify"
    rb"|codecs|__import__|runpy|base64|base85|binascii|marshal|decompress\(\s*[rb]*[\"']"
)


@dataclass(frozen=True)
class Import:
    """A module that a source imports, by the first part of its name.

    `level` counts the dots before it. `guarded`: the source goes on without it. `at_once`: it is
    imported as soon as the source runs, not in a function.
    """

    module: str
    level: int
    line: int
    guarded: bool
    at_once: bool


@dataclass(frozen=True)
class Script:
    """A record's script. `shipped` are its bytes as they lie in the folder."""

    name: str
    shipped: bytes

    @cached_property
    def unwrapped(self) -> Unwrapped:
        """The innermost source. Most scripts have no word of those that a wrapper needs."""
        return unwrap(self.shipped) if WRAPPING.search(self.shipped) else Unwrapped(self.shipped)

    @property
    def source(self) -> bytes:
        """The innermost source that can be read."""
        return self.unwrapped.source

    @property
    def tree(self) -> ast.Module | None:
        """The tree, also where only a newer Python parses the source; None for no Python."""
        return quietly(readable_tree, self.source)

    @cached_property
    def problem(self) -> SyntaxError | None:
        """Why this Python cannot compile the source; None when it can."""
        parsed = quietly(tree_of, self.source)
        try:
            quietly(compile, parsed or self.source, self.name, "exec", 0, True)
        except SyntaxError as error:
            return error
        except (ValueError, RecursionError, MemoryError) as error:
            # null bytes, and nesting that no script needs
            return SyntaxError(str(error) or type(error).__name__)
        return None

    @property
    def where(self) -> str:
        """The script, and how its source is wrapped."""
        layers = self.unwrapped.layers
        return f"{self.name} (inside {', '.join(layers)})" if layers else self.name


def quietly(read: Callable[..., Any], *arguments: Any) -> Any:
    """What `read` gives, without Python's remarks on the author's style."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read(*arguments)


def script_of(record: Record) -> Script | None:
    """The record's script, None where the folder has none."""
    if record.code is None or record.script_name is None:
        return None
    return Script(record.script_name, record.code)


def logged_python(record: Record) -> Version | None:
    """The newest Python that the record's own logs name."""
    found = []
    for log in record.chosen.values():
        parts = (log.text("env.python") or "").split(".")
        if len(parts) >= 2 and all(part.isdigit() for part in parts[:2]):
            found.append((int(parts[0]), int(parts[1])))
    return max(found, default=None)


# --- What a source loads ---


def imports_of(tree: ast.Module) -> list[Import]:
    """Every import of a source, also those inside functions."""
    return list(_imports(tree.body, guarded=False, at_once=True))


def _imports(statements: Sequence[ast.AST], guarded: bool, at_once: bool) -> Iterator[Import]:
    for node in statements:
        if isinstance(node, ast.Import):
            for alias in node.names:
                module = alias.name.partition(".")[0]
                yield Import(module, 0, node.lineno, guarded, at_once)
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or node.names[0].name).partition(".")[0]
            yield Import(module, node.level, node.lineno, guarded, at_once)
        elif isinstance(node, ast.Try | ast.TryStar):
            goes_on = guarded or any(_catches_imports(handler) for handler in node.handlers)
            yield from _imports(node.body, goes_on, at_once)
            others = [*node.handlers, *node.orelse, *node.finalbody]
            yield from _imports(others, guarded, at_once)
        elif isinstance(node, ast.With):
            goes_on = guarded or any(_suppresses_imports(item) for item in node.items)
            yield from _imports(node.body, goes_on, at_once)
        else:
            # a branch of an if may never be taken
            certain = at_once and isinstance(node, ast.ClassDef)
            for block in ("body", "orelse", "cases"):
                inner = getattr(node, block, ())
                yield from _imports(inner if isinstance(inner, list) else (), guarded, certain)


def _catches_imports(handler: ast.ExceptHandler) -> bool:
    """Whether a handler lets the source go on without a module."""
    named = handler.type is None or any(name in OPENERS for name in _names(handler.type))
    raises = any(isinstance(node, ast.Raise) for node in handler.body)
    return named and not raises


def _suppresses_imports(item: ast.withitem) -> bool:
    """Whether a with statement's item is `suppress(ImportError)` or alike."""
    call = item.context_expr
    if not isinstance(call, ast.Call) or not ast.unparse(call.func).endswith("suppress"):
        return False
    caught = [argument.id for argument in call.args if isinstance(argument, ast.Name)]
    return any(name in OPENERS for name in caught)


def _names(node: ast.expr) -> list[str]:
    return [inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)]


@dataclass(frozen=True)
class Loaded:
    """What a script loads from its folder, by file name, with the line of the script that does.

    `imported` it imports or executes, directly or through another file. `named` it names in a
    string, so that it may open or compile them.
    """

    imported: dict[str, int]
    named: dict[str, int]
    imports: tuple[tuple[str, Import], ...]  # of the script and of what it imports, by file


def loaded_by(record: Record, script: Script) -> Loaded:
    """Follow the script's imports through the folder."""
    imported: dict[str, int] = {}
    named: dict[str, int] = {}
    imports: list[tuple[str, Import]] = []
    waiting = [(script.name, script.source, script.tree, 0)]
    while waiting:
        file, source, tree, first_line = waiting.pop()
        found: dict[str, int] = {}
        for name, line, executed in _named_files(record, source):
            named.setdefault(name, first_line or line)
            if executed:
                found[name] = line
        for one in imports_of(tree) if tree is not None else ():
            imports.append((file, one))
            for held in module_files(record, one.module):
                found.setdefault(held, one.line)
        for held, line in found.items():
            if held not in imported and held != script.name:
                imported[held] = first_line or line
                inner = record.files.read(held)
                waiting.append((held, inner, readable_tree(inner), imported[held]))
    others = {name: line for name, line in named.items() if name not in imported}
    others.pop(script.name, None)
    return Loaded(imported, others, tuple(imports))


# Ways to run a Python file, and to find one.
EXECUTES = re.compile(rb"(?<![\w.])exec\s*\(|runpy|import_module|spec_from_file|SourceFileLoader")
OPENS = re.compile(rb"open|[Pp]ath|join|read_text|read_bytes|run_path|spec_from|Loader|exec")


def _named_files(record: Record, source: bytes) -> Iterator[tuple[str, int, bool]]:
    """The folder's files that a source names outside its comments, with the line that does.

    And whether it executes them: a source that runs text or files opens a Python file there.
    """
    executes = EXECUTES.search(source) is not None
    for name in record.names:
        base = name.rpartition("/")[2].encode()
        if base not in source:
            continue
        for number, line in enumerate(source.split(b"\n"), 1):
            code = line.partition(b"#")[0]
            if base in code:
                opened = OPENS.search(code.replace(base, b"")) is not None
                yield name, number, executes and opened and name.endswith(".py")
                break


def module_files(record: Record, module: str) -> list[str]:
    """The folder's files of a top-level module: one file, or all of a package."""
    single = f"{module}.py"
    if single in record.names:
        return [single]
    package = [name for name in record.names if name.startswith(f"{module}/")]
    return [name for name in package if name.endswith(".py")]


# --- Which modules a contestant can count on ---

# Packages of the contest's image and others that its scripts install, by the name of the module.
# fmt: off
KNOWN_PACKAGES = {
    "torch", "numpy", "sentencepiece", "tiktoken", "tokenizers", "transformers", "datasets",
    "huggingface_hub", "hf_transfer", "flash_attn", "flash_attn_interface", "flash_attn_3",
    "triton", "tqdm", "zstandard", "zstd", "pyzstd", "brotli", "lz4", "scipy", "numba",
    "sklearn", "pandas", "matplotlib", "einops", "safetensors", "accelerate", "peft",
    "xformers", "apex", "kernels", "liger_kernel", "fla", "causal_conv1d", "mamba_ssm",
    "transformer_engine", "bitsandbytes", "torchao", "torchvision", "torchaudio", "torch_xla",
    "mlx", "jax", "jaxlib", "flax", "optax", "wandb", "psutil", "pynvml", "yaml", "requests",
    "packaging", "setuptools", "pkg_resources", "cupy", "pybind11", "Cython", "ninja", "regex",
    "blake3", "xxhash", "msgpack", "dahuffman", "constriction", "pyarrow", "polars", "networkx",
    "sympy", "rich", "click", "typer", "hydra", "omegaconf", "tensorboard", "modal", "boto3",
    "dotenv", "pydantic", "nvtx", "cutlass", "tilelang", "quack", "thunderkittens", "deepspeed",
    "lion_pytorch", "heavyball", "schedulefree", "kornia", "ml_dtypes", "python_minifier",
}
# Modules of Python 3.10 that later ones lack, and those that came after 3.10, up to 3.14: the
# script may have run under any of them.
OTHER_STANDARD = {
    "binhex", "asynchat", "asyncore", "smtpd", "imp", "distutils", "aifc", "audioop", "cgi",
    "cgitb", "chunk", "crypt", "imghdr", "mailcap", "msilib", "nis", "nntplib", "ossaudiodev",
    "pipes", "sndhdr", "spwd", "sunau", "telnetlib", "uu", "xdrlib", "lib2to3",
    "tomllib", "annotationlib", "compression",
}
# fmt: on


def is_standard(module: str) -> bool:
    """Whether a module belongs to a Python from 3.10 to 3.14."""
    return module in sys.stdlib_module_names or module in OTHER_STANDARD
