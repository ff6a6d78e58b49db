"""The Python environment that a submission may see.

The embedded corpus is made of the docstrings of installed packages. An unaltered environment
would therefore put the training *and the validation text* within reach of a scorer: as source
files, and as `__doc__` of whatever it imports. Hence:

* Packages outside the rule set's list are not there.
* On the docs track, the standard library's distutils is not there either: setuptools, a package
  of the corpus, carries a copy of it, docstrings included.
* Of the listed packages that the corpus was made from (numpy, torch), the submission sees a copy
  without docstrings: same files, same line numbers, binary parts shared with the original,
  compiled as `python -OO` would. The copy is made once per package version and kept beside the
  environment.

What is left: comments and ordinary string constants of those packages, which are not documents
of the corpus, and the rest of the standard library, whose docstrings are in the corpus only where
a package has copied one.
"""

import ast
import importlib.util
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from fnmatch import fnmatch
from importlib import metadata
from importlib._bootstrap_external import _code_to_hash_pyc
from pathlib import Path
from typing import NamedTuple

from eval.rules import Rules
from eval.text.corpus.dataset import Manifest

LEFT_OUT = {"__pycache__", "tests"}  # a scorer imports no tests of its packages
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
TEXT_SUFFIXES = (".py", ".pyi", ".pyc", ".txt", ".md", ".rst", ".html", ".ipynb")


def visible_environment(
    manifest: Manifest, docs_track: bool, rules: Rules
) -> tuple[list[str], dict[str, Path]]:
    """(folders to empty, target -> file or folder to show there) for one run.

    Targets lie in this environment's site-packages."""
    site = Path(sysconfig.get_paths()["purelib"])
    allowed = list(rules.packages.visible)
    if not docs_track:
        allowed += rules.packages.compilers
    shown = {str(entry): entry for entry in sorted(site.iterdir()) if _is_allowed(entry, allowed)}
    for name, folder in corpus_folders(manifest, site):
        if str(folder) in shown:
            shown |= without_docstrings(name, folder)
    hidden = _packages_of_the_base_interpreter()
    if docs_track:
        hidden.add(os.path.join(sysconfig.get_paths()["stdlib"], "distutils"))
    hidden.discard(str(site))
    existing = sorted(path for path in hidden if Path(path).is_dir())
    return [str(site), *existing], shown


def _is_allowed(entry: Path, patterns: list[str]) -> bool:
    """Whether a rule set's list has an entry of site-packages.

    The metadata of a distribution goes with the package of its name."""
    name = entry.name
    if name.endswith(".dist-info"):
        name = name.split("-")[0].lower()
    return any(fnmatch(name, pattern) for pattern in patterns)


def _packages_of_the_base_interpreter() -> set[str]:
    """Package folders of the interpreter that a virtual environment was made from.

    They are out of reach for imports, but not for open()."""
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    return {sysconfig.get_path(kind, vars=base) for kind in ("purelib", "platlib")}


def corpus_folders(manifest: Manifest, site: Path) -> list[tuple[str, Path]]:
    """(distribution and version, top-level folder) of installed packages of the corpus."""
    recipe = manifest.provenance.get("recipe")
    packages = recipe.get("packages", {}) if isinstance(recipe, dict) else {}
    found = []
    for name in packages:
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        label = f"{name}-{distribution.version}"
        for top in sorted(_source_folders(distribution)):
            if (site / top / "__init__.py").is_file():
                found.append((label, site / top))
    return found


def _source_folders(distribution: metadata.Distribution) -> set[str]:
    """Top-level folders in which a distribution has Python files."""
    sources = [Path(str(file)) for file in distribution.files or [] if file.suffix == ".py"]
    return {path.parts[0] for path in sources if len(path.parts) > 1}


def store() -> Path:
    """Where copies are kept: inside the environment, so that they go when it goes.

    In the user's cache where the environment cannot be written to."""
    if os.access(sys.prefix, os.W_OK):
        return Path(sys.prefix) / "referee"
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return cache / "parameter-golf-referee"


def without_docstrings(name: str, folder: Path) -> dict[str, Path]:
    """target -> source of a copy of `folder` without docstrings.

    Folders that hold no text at all are shown as they are."""
    copy = store() / f"{name}-{sys.implementation.cache_tag}" / folder.name
    texts, plain = survey(folder)
    if not copy.is_dir():
        build_copy(folder, copy, texts, plain)
    return {str(folder): copy} | {str(path): path for path in plain}


def survey(folder: Path) -> tuple[list[Path], list[Path]]:
    """(folders that hold text somewhere below, topmost folders that hold none)."""
    holds_text: dict[Path, bool] = {}
    for path, names, files in os.walk(folder, topdown=False):
        here = Path(path)
        below = [here / name for name in names if name not in LEFT_OUT]
        text_here = any(file.endswith(TEXT_SUFFIXES) for file in files)
        holds_text[here] = text_here or any(holds_text.get(inner, False) for inner in below)
    kept = [path for path in holds_text if LEFT_OUT.isdisjoint(path.relative_to(folder).parts)]
    texts = {path for path in kept if holds_text[path]}
    plain = [path for path in kept if path not in texts and path.parent in texts]
    return sorted(texts), sorted(plain)


def build_copy(folder: Path, copy: Path, texts: Iterable[Path], plain: Iterable[Path]) -> None:
    """Make `copy` whole or not at all. `texts` and `plain` are what `survey` found in `folder`."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=copy.parent))
    try:
        work.chmod(0o755)
        jobs = []
        for here in texts:
            jobs += _prepare(here, work / here.relative_to(folder))
        for here in plain:
            (work / here.relative_to(folder)).mkdir()
        _strip_files(jobs, f"{folder.name} without docstrings (once)")
        os.replace(work, copy)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _prepare(here: Path, there: Path) -> list[tuple[str, str]]:
    """Link the binary files of one folder; returns (source, target) of its Python files."""
    there.mkdir(exist_ok=True)
    jobs = []
    for file in here.iterdir():
        if file.suffix == ".py":
            jobs.append((str(file), str(there / file.name)))
        elif file.is_file() and not file.name.endswith(TEXT_SUFFIXES):
            _link(file, there / file.name)
    return jobs


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target, follow_symlinks=True)
    except OSError:
        shutil.copy2(source, target)


def _strip_files(jobs: list[tuple[str, str]], title: str) -> None:
    from tqdm import tqdm

    with ProcessPoolExecutor() as pool:
        done = pool.map(_strip_file, jobs, chunksize=32)
        bar = tqdm(done, total=len(jobs), desc=title, unit="file", leave=False)
        for _ in bar:
            pass


def _strip_file(job: tuple[str, str]) -> None:
    source, target = job
    raw = Path(source).read_bytes()
    try:
        stripped = strip_docstrings(raw)
        # As `python -OO` compiles: libraries are prepared for that, while numpy.ma asserts that
        # docstrings are there.
        code = compile(raw, source, "exec", dont_inherit=True, optimize=2)
    except (SyntaxError, ValueError, RecursionError):
        return  # no module of this Python version can be imported from it either
    Path(target).write_bytes(stripped)
    # Unchecked: the interpreter inside the read-only sandbox takes the code without comparing
    # times, and could not write its own.
    cached = Path(importlib.util.cache_from_source(target))
    cached.parent.mkdir(exist_ok=True)
    cached.write_bytes(_code_to_hash_pyc(code, importlib.util.source_hash(stripped), checked=False))


# --- Removing docstrings from a source ---


class Docstring(NamedTuple):
    """A docstring's statement. `replacement`: `pass` where a body would otherwise be empty."""

    statement: ast.Expr
    replacement: bytes


def strip_docstrings(raw: bytes) -> bytes:
    """Source without docstrings; lines keep their numbers.

    Raises SyntaxError for anything but Python."""
    lines = raw.splitlines(keepends=True)
    for docstring in _docstrings_from_the_end(ast.parse(raw)):
        statement = docstring.statement
        first = statement.lineno - 1
        last = statement.end_lineno - 1
        before = lines[first][: statement.col_offset]
        after = lines[last][statement.end_col_offset :].rstrip(b"\r\n")
        if not docstring.replacement:
            after = after.lstrip(b" ;")
        line_ends = b"\n" * (last - first + 1)
        lines[first : last + 1] = [before + docstring.replacement + after + line_ends]
    return b"".join(lines)


def _docstrings_from_the_end(tree: ast.Module) -> list[Docstring]:
    """Last first, so that taking one out moves none of those that follow in the list."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and node.body and _is_text(node.body[0]):
            only_statement = len(node.body) == 1
            found.append(Docstring(node.body[0], b"pass" if only_statement else b""))
    found.sort(key=lambda docstring: _position(docstring.statement), reverse=True)
    return found


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _position(node: ast.stmt) -> tuple[int, int]:
    return node.lineno, node.col_offset
