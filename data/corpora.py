"""Where documents come from: the docstrings of pinned packages, or the user's own files."""

import ast
import gc
import importlib.metadata
import json
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.common import UserError, process_pool


@dataclass
class Corpus:
    """Documents in any order, duplicates allowed, and where they came from. `recipe`: equal recipes mean equal documents."""

    name: str
    documents: list[str]
    provenance: dict[str, Any] = field(default_factory=dict)


# --- docs -------------------------------------------------------------------------------------------------------------

# requirements.txt pins these; every package that gives at least 100 kB of docstrings and is no mere dependency of pip's.
DOCS_PACKAGES = (
    "click", "fonttools", "fsspec", "huggingface_hub", "hypothesis", "matplotlib", "mpmath", "networkx", "numpy", "pillow",
    "pydantic", "pyparsing", "pytest", "scipy", "setuptools", "sympy", "torch",
)  # fmt: skip
MIN_CHARACTERS = 200
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def docs_recipe() -> dict[str, Any]:
    """What the corpus is made of. The local part of a version (torch's +cpu, +cu130) names a build of the same Python sources: of the 2,371
    files of torch 2.13.0's CPU and CUDA wheels only version.py differs."""
    try:
        versions = {name: importlib.metadata.version(name).split("+")[0] for name in DOCS_PACKAGES}
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            f"package {error.name} is not installed, and the docs corpus is made of it; pip install -r requirements.txt"
        ) from error
    # A file in the syntax of a later Python cannot be parsed by an earlier one, so the minor version belongs to the recipe, although with
    # these pins 3.11, 3.12 and 3.13 give the same 22,641 documents.
    return {
        "packages": versions,
        "python": ".".join(map(str, sys.version_info[:2])),
        "min_characters": MIN_CHARACTERS,
    }


def clean_docstring(text: str) -> str:
    """PEP 257 indentation trimming. Not inspect.cleandoc, whose treatment of tabs and blank lines changed between Python versions."""
    first, *rest = text.expandtabs().split("\n")
    margin = min((len(line) - len(line.lstrip(" ")) for line in rest if line.strip(" ")), default=0)
    return "\n".join([first.strip(" "), *(line[margin:].rstrip(" ") for line in rest)]).strip("\n")


def docstrings(source: bytes) -> list[str]:
    """Cleaned docstrings of a module, its classes and functions, at any depth. Raises SyntaxError or ValueError on what is no Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's sources
        stack: list[ast.AST] = [ast.parse(source)]
    found = []
    while stack:
        node = stack.pop()
        if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node, clean=False)):
            found.append(clean_docstring(text))
        # Only statements can hold definitions; walking expressions too would double the time.
        for block in ("body", "orelse", "finalbody", "handlers", "cases"):
            children = getattr(node, block, None)
            if isinstance(children, list):
                stack.extend(children)
    return found


def _docstrings_of_file(path: str) -> list[str] | None:
    gc.disable()  # in a worker process: a syntax tree holds no garbage, and walking it for some costs a sixth of the time
    try:
        return docstrings(Path(path).read_bytes())
    except (SyntaxError, ValueError, RecursionError):
        return None


def docs_corpus(workers: int) -> Corpus:
    """Docstrings of at least 200 characters. Test folders are left out: a third of the parsing time for 0.8 % of the text."""
    recipe = docs_recipe()
    files = []
    for name in DOCS_PACKAGES:
        distribution = importlib.metadata.distribution(name)
        if not distribution.files:
            raise UserError(
                f"package {name} carries no list of its files (RECORD); pip install --force-reinstall {name}"
            )
        own = (
            file
            for file in distribution.files
            if file.suffix == ".py" and not {"..", "test", "tests"} & set(file.parts)
        )
        files += sorted(str(distribution.locate_file(file)) for file in own)
    documents, unparsable, surrogates = [], [], 0
    with process_pool(workers) as pool:
        results = pool.map(_docstrings_of_file, files, chunksize=16)
        for path, found in zip(
            files, tqdm(results, "docstrings", len(files), unit="file", disable=None), strict=True
        ):
            if found is None:
                unparsable.append(
                    "/".join(Path(path).parts[Path(path).parts.index("site-packages") + 1 :])
                )
            for text in found or ():
                if len(text) >= MIN_CHARACTERS:
                    if is_text(text):
                        documents.append(text)
                    else:
                        surrogates += 1
    return Corpus(
        "docs",
        documents,
        {
            "recipe": recipe,
            "files": len(files),
            "unparsable_files": unparsable,
            "documents_not_unicode": surrogates,
        },
    )


def is_text(text: str) -> bool:
    """False for a string with a lone surrogate, which has no UTF-8 form."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# --- text -------------------------------------------------------------------------------------------------------------

TEXT_SUFFIXES, JSONL_SUFFIXES = (".txt", ".md", ".rst"), (".jsonl", ".ndjson", ".json")


def text_files(paths: list[Path]) -> list[Path]:
    """Files as given; a folder stands for every text and JSON-lines file below it, in name order."""
    files = []
    for path in paths:
        if path.is_dir():
            below = sorted(
                p
                for p in path.rglob("*")
                if p.suffix in TEXT_SUFFIXES + JSONL_SUFFIXES and p.is_file()
            )
            if not below:
                raise UserError(
                    f"{path}: no {' '.join(TEXT_SUFFIXES + JSONL_SUFFIXES)} file below this folder; name the files themselves"
                )
            files += below
        elif path.is_file():
            files.append(path)
        else:
            raise UserError(f"{path}: no such file or folder")
    return files


def decode_utf8(path: Path, raw: bytes, offset: int = 0) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 at byte {offset + error.start:,} (0x{raw[error.start]:02x}, {error.reason}); convert the file, e.g. with iconv"
        ) from error


def blocks(text: str, min_characters: int) -> Iterator[str]:
    """Blank-line-separated blocks, neighbours joined (blank lines kept) until a document has `min_characters`; the tail may be shorter."""
    lines: list[str] = []
    size = 0
    for line in text.split("\n"):
        if size >= min_characters and not line.strip():
            yield "\n".join(lines).strip("\r\n")
            lines, size = [], 0
        elif lines or line.strip():
            lines.append(line)
            size += len(line) + 1
    yield "\n".join(lines).strip("\r\n")


def jsonl_texts(path: Path) -> Iterator[str]:
    """The `text` field of each line, one line in memory at a time."""
    with open(path, "rb") as file:
        offset = 0
        for number, raw in enumerate(file, 1):
            line = decode_utf8(path, raw, offset).removeprefix("\ufeff")
            offset += len(raw)
            if line.strip():
                yield jsonl_text(path, f"line {number:,}", line)


def jsonl_text(path: Path, where: str, line: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: {where} is no JSON ({error}); expected one object a line with a text field"
        ) from error
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise UserError(
            f'{path}: {where} has no text field that is a string; expected {{"text": "..."}}, found {line.strip()[:60]}'
        )
    if not is_text(text):
        raise UserError(
            f"{path}: {where} holds a lone surrogate (\\ud800..\\udfff), which has no UTF-8 form; repair the line"
        )
    return text


def text_corpus(files: list[Path], unit: str, min_characters: int) -> Corpus:
    """unit: "blocks", "lines" or "files" for plain text; a JSON line is always one document. Whitespace-only documents are dropped."""
    split = {
        "blocks": partial(blocks, min_characters=min_characters),
        "lines": lambda text: iter(text.split("\n")),
        "files": lambda text: iter([text]),
    }[unit]
    documents: list[str] = []
    for path in tqdm(files, "reading", unit="file", disable=None):
        found = (
            jsonl_texts(path)
            if path.suffix in JSONL_SUFFIXES
            else split(decode_utf8(path, path.read_bytes()))
        )
        documents += (text for text in found if text.strip())
    return Corpus("text", documents)
