"""The Python environment that a submission may see.

The embedded corpus is made of the docstrings of installed packages, so an unaltered environment would put the training *and the
validation text* within reach of a scorer: as source files, and as `__doc__` of whatever it imports. Therefore

* packages outside the rule set's list are not there;
* on the docs track, neither is the standard library's distutils: setuptools, a package of the corpus, carries a copy of it, docstrings included;
* of the listed ones that the corpus was made from (numpy, torch), the submission sees a copy without docstrings: same files, same line
  numbers, binary parts shared with the original, compiled as `python -OO` would. It is made once per package version and kept beside the environment.

What is left: comments and ordinary string constants of those packages, which are no documents of the corpus, and the rest of the standard
library, whose docstrings are in the corpus only where a package has copied one."""

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

from eval.rules import Rules
from eval.text.corpus.dataset import Manifest

LEFT_OUT = {"__pycache__", "tests"}  # a scorer imports no tests of its packages
TEXT_SUFFIXES = (".py", ".pyi", ".pyc", ".txt", ".md", ".rst", ".html", ".ipynb")


def visible_environment(
    manifest: Manifest, docs_track: bool, rules: Rules
) -> tuple[list[str], dict[str, Path]]:
    """(folders to empty, target -> file or folder to show there) for one run. Targets lie in this environment's site-packages."""
    site = Path(sysconfig.get_paths()["purelib"])
    allowed = rules.packages.visible + ([] if docs_track else rules.packages.compilers)
    shown = {
        str(e): e
        for e in sorted(site.iterdir())
        if any(fnmatch(_top_name(e), pattern) for pattern in allowed)
    }
    for name, folder in corpus_folders(manifest, site):
        if str(folder) in shown:
            shown |= without_docstrings(name, folder)
    # The interpreter that a virtual environment was made from has packages of its own, out of reach for imports but not for open().
    others = {
        sysconfig.get_path(kind, vars={"base": sys.base_prefix, "platbase": sys.base_exec_prefix})
        for kind in ("purelib", "platlib")
    }
    hidden = others | (
        {os.path.join(sysconfig.get_paths()["stdlib"], "distutils")} if docs_track else set()
    )
    return [str(site), *sorted(path for path in hidden - {str(site)} if Path(path).is_dir())], shown


def _top_name(entry: Path) -> str:
    """What the rule set calls an entry; the metadata of a distribution goes with the package of its name."""
    return entry.name.split("-")[0].lower() if entry.name.endswith(".dist-info") else entry.name


def corpus_folders(manifest: Manifest, site: Path) -> list[tuple[str, Path]]:
    """(distribution and version, top-level folder) of installed packages that the corpus was made from."""
    recipe = manifest.provenance.get("recipe")
    packages = recipe.get("packages", {}) if isinstance(recipe, dict) else {}
    found = []
    for name in packages:
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        tops = {
            Path(str(f)).parts[0]
            for f in distribution.files or []
            if len(Path(str(f)).parts) > 1 and f.suffix == ".py"
        }
        found += [
            (f"{name}-{distribution.version}", site / top)
            for top in sorted(tops)
            if (site / top / "__init__.py").is_file()
        ]
    return found


def store() -> Path:
    """Where copies are kept: in the environment itself, so that they go when it goes; else in the user's cache."""
    inside = Path(sys.prefix) / "referee"
    if os.access(sys.prefix, os.W_OK):
        return inside
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "parameter-golf-referee"


def without_docstrings(name: str, folder: Path) -> dict[str, Path]:
    """target -> source of a copy of `folder` without docstrings; folders that hold no text at all are shown as they are."""
    copy = store() / f"{name}-{sys.implementation.cache_tag}" / folder.name
    texts, plain = survey(folder)
    if not copy.is_dir():
        build_copy(folder, copy, texts, plain)
    return {str(folder): copy} | {str(path): path for path in plain}


def survey(folder: Path) -> tuple[list[Path], list[Path]]:
    """(folders that hold text somewhere below, topmost folders that hold none)."""
    holds: dict[Path, bool] = {}
    for path, names, files in os.walk(folder, topdown=False):
        here = Path(path)
        names = [n for n in names if n not in LEFT_OUT]
        holds[here] = any(f.endswith(TEXT_SUFFIXES) for f in files) or any(
            holds.get(here / n, False) for n in names
        )
    kept = {
        path: text
        for path, text in holds.items()
        if not LEFT_OUT.intersection(path.relative_to(folder).parts)
    }
    texts = [path for path, text in kept.items() if text]
    plain = [path for path, text in kept.items() if not text and kept.get(path.parent, False)]
    return sorted(texts), sorted(plain)


def build_copy(folder: Path, copy: Path, texts: Iterable[Path], plain: Iterable[Path]) -> None:
    from tqdm import tqdm

    copy.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=copy.parent))
    try:
        work.chmod(0o755)
        jobs = []
        for here in texts:
            there = work / here.relative_to(folder)
            there.mkdir(exist_ok=True)
            for file in here.iterdir():
                if file.suffix == ".py":
                    jobs.append((str(file), str(there / file.name)))
                elif file.is_file() and not file.name.endswith(TEXT_SUFFIXES):
                    _link(file, there / file.name)
        for here in plain:
            (work / here.relative_to(folder)).mkdir()
        with ProcessPoolExecutor() as pool:
            done = pool.map(_strip_file, jobs, chunksize=32)
            for _ in tqdm(
                done,
                total=len(jobs),
                desc=f"{folder.name} without docstrings (once)",
                unit="file",
                leave=False,
            ):
                pass
        os.replace(work, copy)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target, follow_symlinks=True)
    except OSError:
        shutil.copy2(source, target)


def _strip_file(job: tuple[str, str]) -> None:
    source, target = job
    raw = Path(source).read_bytes()
    try:
        stripped = strip_docstrings(raw)
        # As `python -OO` compiles: libraries are prepared for that, while numpy.ma asserts that docstrings are there.
        code = compile(raw, source, "exec", dont_inherit=True, optimize=2)
    except (SyntaxError, ValueError, RecursionError):
        return  # no module of this Python version can be imported from it either
    Path(target).write_bytes(stripped)
    # Unchecked: the interpreter inside the read-only sandbox takes the code without comparing times, and could not write its own.
    cached = Path(importlib.util.cache_from_source(target))
    cached.parent.mkdir(exist_ok=True)
    cached.write_bytes(_code_to_hash_pyc(code, importlib.util.source_hash(stripped), checked=False))


def strip_docstrings(raw: bytes) -> bytes:
    """Source without docstrings; lines keep their numbers. Raises SyntaxError for what is no Python."""
    lines, found = raw.splitlines(keepends=True), []
    for node in ast.walk(ast.parse(raw)):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and node.body
        ):
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                found.append(
                    (first, b"pass" if len(node.body) == 1 else b"")
                )  # a body may not be empty, `from __future__` stays first
    for node, instead in sorted(
        found, key=lambda pair: (pair[0].lineno, pair[0].col_offset), reverse=True
    ):
        begin, end = node.lineno - 1, node.end_lineno - 1
        tail = (
            lines[end][node.end_col_offset :].rstrip(b"\r\n").lstrip(b" ;" if not instead else b"")
        )
        lines[begin : end + 1] = [
            lines[begin][: node.col_offset] + instead + tail + b"\n" * (end - begin + 1)
        ]
    return b"".join(lines)
