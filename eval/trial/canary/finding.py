"""Finds the script of a record folder and all that it needs beside it, without running it."""

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from eval.errors import UserError
from eval.papers.submission.schema import CODE_FILE, SUBMISSION_FILE
from eval.papers.submission.script import Version, python_needed, readable_tree, text_of
from eval.papers.submission.unwrap import Unwrapped, unwrap
from eval.trial.canary.knobs import Knobs, find_knobs
from eval.trial.canary.results import UNKNOWN_RESULTS, OwnWords, Results, own_results
from eval.trial.canary.settings import OwnSettings, own_settings, script_in_texts

MOST_FILES = 2000
MOST_BYTES = 256 << 20  # of all files of a record folder
MOST_READ = 8 << 20  # of one file that is looked into
MOST_LOGS = 8  # in which the record's score is looked for
LAST_READ = 1 << 19  # bytes at the end of each
SKIPPED = {".git", "__pycache__", ".venv", "node_modules"}
READ_SUFFIXES = (".md", ".json", ".sh", ".bash", ".log", ".txt")
SCORE_LINE = re.compile(rb"val_(?:bpb|loss)\s*[:=]\s*\d")
CONTEST_SIZES = (1024, 2048, 4096, 8192)
DATA_NAMES = ("DATA_PATH", "TOKENIZER_PATH", "DATA_DIR")


@dataclass(frozen=True)
class Script:
    """A script and its surroundings. `files` are all that lie beside it, by their path from it."""

    folder: Path
    name: str
    files: Mapping[str, Path]

    @cached_property
    def for_the_run(self) -> dict[str, Path]:
        """The files that the script may find beside it: all but logs, whose scores would be read
        as its own."""
        return {name: path for name, path in self.files.items() if not _is_log(name, path)}

    @cached_property
    def source(self) -> bytes:
        return self.files[self.name].read_bytes()

    @cached_property
    def unwrapped(self) -> Unwrapped:
        return unwrap(self.source)

    @cached_property
    def text(self) -> str:
        """The readable source and those of the modules that it imports from its folder."""
        return "\n".join(text_of(source) for source in self._sources)

    @cached_property
    def python_needed(self) -> Version | None:
        """The oldest Python that can parse all of it, None where 3.10 can."""
        needed = [python_needed(source) for source in (self.source, *self._sources)]
        return max((version for version in needed if version is not None), default=None)

    @cached_property
    def knobs(self) -> Knobs:
        return find_knobs(self._sources)

    @cached_property
    def own(self) -> OwnSettings:
        """What the record says that it was run with."""
        wanted = {name: path for name, path in self.files.items() if _is_paper(name)}
        texts = {name: _beginning(path) for name, path in wanted.items()}
        return own_settings(texts, self.name, self.knobs, text_of(self.source))

    @cached_property
    def own_words(self) -> OwnWords:
        return OwnWords(self.text, self.results)

    @cached_property
    def results(self) -> Results:
        """Where the record's logs state the score of its submission.json."""
        if SUBMISSION_FILE not in self.files:
            return UNKNOWN_RESULTS
        logs = [path for name, path in self.files.items() if _is_log(name, path)][:MOST_LOGS]
        return own_results(
            _beginning(self.files[SUBMISSION_FILE]).decode(errors="replace"),
            [_end(path).decode(errors="replace") for path in logs],
        )

    @cached_property
    def vocab_size(self) -> int:
        """The size of the vocabulary that the record is for; 1024 where nothing tells."""
        stated = self.own.variables.get("VOCAB_SIZE") or self.knobs.default("VOCAB_SIZE")
        if stated is not None and stated.isdecimal():
            return int(stated)
        named = " ".join(self.knobs.default(name) or "" for name in DATA_NAMES)
        sizes = [size for size in CONTEST_SIZES if f"sp{size}" in named or f"_{size}_" in named]
        return sizes[0] if sizes else CONTEST_SIZES[0]

    @cached_property
    def _sources(self) -> list[bytes]:
        modules = [self.files[name] for name in imported_files(self.name, self.files.get)]
        return [self.unwrapped.source, *(unwrap(path.read_bytes()).source for path in modules)]


def open_script(path: Path) -> Script:
    """The script at `path`, or that of the record folder there.

    Raises UserError when there is none, or when several could be meant.
    """
    if path.is_dir():
        files = files_of(path)
        return Script(path, script_of(path, files), files)
    if not path.is_file():
        raise UserError(f"{path}: expected a script or a record folder, found nothing")
    if path.suffix != ".py":
        raise UserError(f"{path}: expected a Python script (.py) or a record folder")
    if (path.parent / SUBMISSION_FILE).is_file():
        return Script(path.parent, path.name, files_of(path.parent))
    names = [path.name, *imported_files(path.name, partial(_beside, path.parent))]
    return Script(path.parent, path.name, {name: path.parent / name for name in names})


def _beside(folder: Path, name: str) -> Path | None:
    path = folder / name
    return path if path.is_file() and not path.is_symlink() else None


def files_of(folder: Path) -> dict[str, Path]:
    """All plain files of a record folder by their path from it.

    Raises UserError for a folder too large to be a record.
    """
    files: dict[str, Path] = {}
    total = 0
    for path in _walk(folder):
        files[path.relative_to(folder).as_posix()] = path
        total += path.stat().st_size
        if len(files) > MOST_FILES or total > MOST_BYTES:
            raise UserError(
                f"{folder}: expected a record folder of at most {MOST_FILES:,} files and "
                f"{MOST_BYTES >> 20} MiB, found more; name the script itself"
            )
    return files


def _walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_symlink() or path.name in SKIPPED:
            continue
        if path.is_dir():
            yield from _walk(path)
        elif path.is_file():
            yield path


def script_of(folder: Path, files: Mapping[str, Path]) -> str:
    """The file that is the record's script: the contest's name, the one that its own command runs,
    or the only one that could be.

    Raises UserError when there is none, or when several could be meant.
    """
    if CODE_FILE in files:
        return CODE_FILE
    scripts = [name for name in files if name.endswith(".py") and "/" not in name]
    named = script_in_texts({name: _beginning(files[name]) for name in files if _wanted(name)})
    if named in scripts:
        return named
    training = [name for name in scripts if name.startswith("train") and "mlx" not in name]
    for candidates in (training, scripts):
        if len(candidates) == 1:
            return candidates[0]
    if not scripts:
        raise UserError(f"{folder}: expected a record's script ({CODE_FILE}), found no .py file")
    shown = ", ".join(sorted(training or scripts)[:5])
    raise UserError(f"{folder}: several scripts could be meant ({shown}, …); name one of them")


def _is_log(name: str, path: Path) -> bool:
    if name.endswith(".log"):
        return True
    return name.endswith((".txt", ".out")) and SCORE_LINE.search(_beginning(path)) is not None


def _is_paper(name: str) -> bool:
    return name.lower().endswith(READ_SUFFIXES)


def _wanted(name: str) -> bool:
    return _is_paper(name) or name.endswith(".py")


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MOST_READ)


def _end(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - LAST_READ, 0))
        return file.read(LAST_READ)


def imported_files(name: str, find: Callable[[str], Path | None]) -> list[str]:
    """Names of the Python files that a script imports, also through each other.

    `find` gives the file of a name beside the script, None where there is none.
    """
    found: list[str] = []
    waiting = [name]
    while waiting:
        path = find(waiting.pop())
        tree = None if path is None else readable_tree(unwrap(_beginning(path)).source)
        for module in _imports(tree) if tree is not None else ():
            place = module.replace(".", "/")
            for file in (f"{place}.py", f"{place}/__init__.py"):
                if file not in (name, *found) and find(file) is not None:
                    found.append(file)
                    waiting.append(file)
    return found


def _imports(tree: ast.Module) -> Iterator[str]:
    """Names of modules that a source imports, with the packages that hold them."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[:count]) for count in range(1, len(parts) + 1))
