"""Where documents come from: the docstrings of pinned packages, or the user's own files."""

import ast
import gc
import gzip
import importlib.metadata
import json
import sys
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from data.common import UserError, process_pool


@dataclass
class Corpus:
    """Documents in any order, duplicates allowed, and where they came from."""

    name: str
    documents: list[str]
    provenance: dict[str, Any] = field(default_factory=dict)


# --- docs -----------------------------------------------------------------------------------------

# Every package pinned in requirements.txt that gives at least 100 kB of docstrings and is not
# merely a dependency of pip.
DOCS_PACKAGES = (
    "click",
    "fonttools",
    "fsspec",
    "huggingface_hub",
    "hypothesis",
    "matplotlib",
    "mpmath",
    "networkx",
    "numpy",
    "pillow",
    "pydantic",
    "pyparsing",
    "pytest",
    "scipy",
    "setuptools",
    "sympy",
    "torch",
)
MIN_CHARACTERS = 200
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
# Only statements can hold definitions. Walking expressions too would double the time.
STATEMENT_FIELDS = ("body", "orelse", "finalbody", "handlers", "cases")
# Scripts outside the package, and tests: a third of the parsing time for 0.8 % of the text.
LEFT_OUT = {"..", "test", "tests"}


def docs_recipe() -> dict[str, Any]:
    """What the corpus is made of. Equal recipes mean equal documents.

    The local part of a version (torch's +cpu, +cu130) names a build of the same Python sources:
    of the 2,371 files in torch 2.13.0's CPU and CUDA wheels, only version.py differs.

    A file in the syntax of a later Python cannot be parsed by an earlier one. So the minor
    version belongs to the recipe, although with these pins 3.11, 3.12 and 3.13 give the same
    22,641 documents.
    """
    try:
        versions = {name: importlib.metadata.version(name).split("+")[0] for name in DOCS_PACKAGES}
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            f"package {error.name} is not installed, and the docs corpus is made of it; "
            "pip install -r requirements.txt"
        ) from error
    return {
        "packages": versions,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "min_characters": MIN_CHARACTERS,
    }


def clean_docstring(text: str) -> str:
    """PEP 257 indentation trimming.

    Not inspect.cleandoc: its treatment of tabs and blank lines changed between Python versions.
    """
    first, *rest = text.expandtabs().split("\n")
    indents = [len(line) - len(line.lstrip(" ")) for line in rest if line.strip(" ")]
    margin = min(indents, default=0)
    lines = [first.strip(" "), *(line[margin:].rstrip(" ") for line in rest)]
    return "\n".join(lines).strip("\n")


def docstrings(source: bytes) -> list[str]:
    """Cleaned docstrings of a module, its classes and its functions, at any depth.

    Raises SyntaxError or ValueError where the source is not Python.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's sources
        stack: list[ast.AST] = [ast.parse(source)]
    found = []
    while stack:
        node = stack.pop()
        if isinstance(node, DOCUMENTED):
            text = ast.get_docstring(node, clean=False)
            if text:
                found.append(clean_docstring(text))
        for name in STATEMENT_FIELDS:
            children = getattr(node, name, None)
            if isinstance(children, list):
                stack.extend(children)
    return found


def _docstrings_of_file(path: str) -> list[str] | None:
    # This is a worker process. A syntax tree holds no garbage, and searching it for some costs
    # a sixth of the time.
    gc.disable()
    try:
        return docstrings(Path(path).read_bytes())
    except (SyntaxError, ValueError, RecursionError):
        return None


def _python_files(package: str) -> list[str]:
    """Paths of the package's Python files, in name order, without its tests and scripts."""
    distribution = importlib.metadata.distribution(package)
    if not distribution.files:
        raise UserError(
            f"package {package} carries no list of its files (RECORD); "
            f"pip install --force-reinstall {package}"
        )
    sources = [file for file in distribution.files if file.suffix == ".py"]
    kept = [file for file in sources if not LEFT_OUT & set(file.parts)]
    return sorted(str(distribution.locate_file(file)) for file in kept)


def docs_corpus(workers: int) -> Corpus:
    """Docstrings of at least MIN_CHARACTERS characters, from everything but test folders."""
    recipe = docs_recipe()
    files: list[str] = []
    for package in DOCS_PACKAGES:
        files += _python_files(package)
    documents = []
    unparsable = []
    not_unicode = 0
    with process_pool(workers) as pool:
        results = pool.map(_docstrings_of_file, files, chunksize=16)
        bar = tqdm(results, "docstrings", len(files), unit="file", disable=None)
        for path, found in zip(files, bar, strict=True):
            if found is None:
                unparsable.append(_below_site_packages(path))
                continue
            long = [text for text in found if len(text) >= MIN_CHARACTERS]
            sound = [text for text in long if is_text(text)]
            documents += sound
            not_unicode += len(long) - len(sound)
    provenance = {
        "recipe": recipe,
        "files": len(files),
        "unparsable_files": unparsable,
        "documents_not_unicode": not_unicode,
    }
    return Corpus("docs", documents, provenance)


def _below_site_packages(path: str) -> str:
    parts = Path(path).parts
    return "/".join(parts[parts.index("site-packages") + 1 :])


def is_text(text: str) -> bool:
    """False for a string with a lone surrogate, which has no UTF-8 form."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# --- text -----------------------------------------------------------------------------------------

TEXT_SUFFIXES = (".txt", ".md", ".rst")
JSONL_SUFFIXES = (".jsonl", ".ndjson", ".json")
PACKED_SUFFIX = ".gz"


def is_packed(path: Path) -> bool:
    return path.suffix.lower() == PACKED_SUFFIX


def content_suffix(path: Path) -> str:
    """The suffix that says what a file holds, in lower case: `.jsonl` of `A.JSONL.gz`."""
    inner = path.with_suffix("") if is_packed(path) else path
    return inner.suffix.lower()


def is_json_lines(path: Path) -> bool:
    return content_suffix(path) in JSONL_SUFFIXES


@contextmanager
def open_unpacked(path: Path) -> Iterator[BinaryIO]:
    """A file's bytes, unpacked where its name ends in .gz. Raises UserError for a broken one."""
    with gzip.open(path) if is_packed(path) else open(path, "rb") as file:
        try:
            yield file
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(
                f"{path}: expected a whole gzip file, found a broken one ({error}); "
                "fetch it again, or unpack it if it is none"
            ) from error


def read_text(path: Path) -> str:
    """A whole file of UTF-8 text. Raises UserError."""
    with open_unpacked(path) as file:
        return decode_utf8(path, file.read()).removeprefix("\ufeff")


def text_files(paths: list[Path]) -> list[Path]:
    """Files as given. A folder stands for all its text and JSON-lines files, in name order.

    Raises UserError on a path that does not exist and on a folder without such files.
    """
    suffixes = TEXT_SUFFIXES + JSONL_SUFFIXES
    files: list[Path] = []
    for path in paths:
        if path.is_file():
            files.append(path)
        elif path.is_dir():
            candidates = [file for file in path.rglob("*") if content_suffix(file) in suffixes]
            below = sorted(file for file in candidates if file.is_file())
            if not below:
                raise UserError(
                    f"{path}: no {' '.join(suffixes)} file below this folder; "
                    "name the files themselves"
                )
            files += below
        else:
            raise UserError(f"{path}: no such file or folder")
    return files


def decode_utf8(path: Path, raw: bytes, offset: int = 0) -> str:
    """The text of bytes that begin at `offset` in the file. Raises UserError."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 at byte {offset + error.start:,} "
            f"(0x{raw[error.start]:02x}, {error.reason}); convert the file, e.g. with iconv"
        ) from error


def blocks(text: str, min_characters: int) -> Iterator[str]:
    """Blank-line-separated blocks, each joined with its neighbours up to `min_characters`.

    The blank lines between joined blocks stay. The last document may be shorter.
    """
    lines: list[str] = []
    size = 0
    for line in text.split("\n"):
        blank = not line.strip()
        if blank and size >= min_characters:
            yield _joined(lines)
            lines = []
            size = 0
        elif lines or not blank:
            lines.append(line)
            size += len(line) + 1
    yield _joined(lines)


def _joined(lines: list[str]) -> str:
    return "\n".join(lines).strip("\r\n")


def _lines(text: str) -> list[str]:
    return text.split("\n")


def _whole(text: str) -> list[str]:
    return [text]


def jsonl_texts(path: Path) -> Iterator[str]:
    """The `text` field of each line, one line in memory at a time. Raises UserError."""
    with open_unpacked(path) as file:
        offset = 0
        for number, raw in enumerate(file, 1):
            line = decode_utf8(path, raw, offset).removeprefix("\ufeff")
            offset += len(raw)
            if line.strip():
                yield jsonl_text(path, f"line {number:,}", line)


def jsonl_text(path: Path, where: str, line: str) -> str:
    """The `text` field of one line. Raises UserError, which says `where` in the file."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: {where} is not JSON ({error}); expected one object a line with a text field"
        ) from error
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise UserError(
            f"{path}: {where} has no text field that is a string; "
            f'expected {{"text": "..."}}, found {line.strip()[:60]}'
        )
    if not is_text(text):
        raise UserError(
            f"{path}: {where} holds a lone surrogate (\\ud800..\\udfff), "
            "which has no UTF-8 form; repair the line"
        )
    return text


def text_corpus(files: list[Path], unit: str, min_characters: int) -> Corpus:
    """The documents of the user's files. Whitespace-only documents are dropped.

    unit: what a document is in plain text, "blocks", "lines" or "files". In JSON lines, a
    document is always one line.
    """
    units: dict[str, Callable[[str], Iterable[str]]] = {
        "blocks": partial(blocks, min_characters=min_characters),
        "lines": _lines,
        "files": _whole,
    }
    split = units[unit]
    documents: list[str] = []
    for path in tqdm(files, "reading", unit="file", disable=None):
        found = jsonl_texts(path) if is_json_lines(path) else split(read_text(path))
        documents += [text for text in found if text.strip()]
    return Corpus("text", documents)
