"""How `eval/` is built: which room may import which, how many there are, how quickly it starts.

A room is a module or package directly in `eval/` or in one of its wings; `commands` is one room.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EVAL = ROOT / "eval"
WINGS = ("papers", "trial", "text")
FOUNDATION = {"errors", "rules", "files"}
MOST_ROOMS = 16
MOST_LINES = 500
# Who may import whom, by wing. Rooms of one wing may import each other, without a circle.
MAY_IMPORT = {
    "foundation": {"foundation"},
    "text": {"foundation", "text"},
    "papers": {"foundation", "text", "papers"},
    "trial": {"foundation", "text", "papers", "trial"},
    "commands": {"foundation", "text", "papers", "trial", "commands"},
}
# What the trial takes from the papers: the record, its claims, how logs are read, and the tables
# of the reports that it writes. The test `evidence` rests on the checks as well.
TRIAL_READS = {
    "papers.folder",
    "papers.submission",
    "papers.audits",
    "papers.logs",
    "papers.rendering",
}
TRIAL_CHECKS = "eval.trial.audit.evidence"
# Modules that write. Only commands and other writers stand on them.
WRITERS = {
    "eval.papers.rendering.audits",
    "eval.papers.rendering.board",
    "eval.papers.rendering.packing",
    "eval.papers.rendering.pictures",
}
HEAVY = ("datatrove", "jinja2", "matplotlib", "numpy", "scipy", "sentencepiece", "torch", "tqdm")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> dict[str, Path]:
    """Every module of `eval/`; those of the sandbox's inside run alone and import nothing here."""
    paths = [path for path in EVAL.rglob("*.py") if path.parent.name != "inside"]
    return {module_name(path): path for path in paths}


MODULES = sources()


def imported(path: Path) -> Iterator[str]:
    """Modules of `eval` that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in MODULES:
                    yield alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in MODULES:
                    yield inner
                elif node.module in MODULES:
                    yield node.module


IMPORTS = {name: set(imported(path)) for name, path in MODULES.items()}


def room(module: str) -> str | None:
    """`rules`, `commands`, `papers.logs`, …; None for the package itself and for a bare wing."""
    parts = module.split(".")[1:]
    bare_wing = len(parts) == 1 and parts[0] in WINGS
    if not parts or parts == ["__main__"] or bare_wing:
        return None
    return ".".join(parts[:2]) if parts[0] in WINGS else parts[0]


def wing(module: str) -> str:
    """`foundation`, `text`, `papers`, `trial`, `commands` or `__main__`; empty for the package."""
    first = module.partition(".")[2].partition(".")[0]
    return "foundation" if first in FOUNDATION else first


def rooms() -> set[str]:
    return {room(module) for module in MODULES} - {None}


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """The nodes that remain after repeatedly removing those from which no arrow leads on."""
    left = {node: set(targets) for node, targets in arrows.items()}
    while True:
        ends = [node for node, targets in left.items() if not targets & left.keys()]
        if not ends:
            return sorted(left)
        for node in ends:
            del left[node]


def test_a_circle_is_seen():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c", "d"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_few_rooms():
    assert len(rooms()) <= MOST_ROOMS, sorted(rooms())


def test_no_circle_between_rooms():
    arrows: dict[str, set[str]] = {name: set() for name in rooms()}
    for module, targets in IMPORTS.items():
        here = room(module)
        if here is not None:
            arrows[here] |= {room(target) for target in targets} - {here, None}
    assert circle(arrows) == []


def test_no_circle_between_modules():
    assert circle({module: targets - {module} for module, targets in IMPORTS.items()}) == []


@pytest.mark.parametrize("module", sorted(m for m in MODULES if room(m) is not None))
def test_imports_point_downwards(module):
    foreign = {t for t in IMPORTS[module] if wing(t) not in MAY_IMPORT[wing(module)]}
    assert not foreign, f"{module} imports {sorted(foreign)}"


@pytest.mark.parametrize("module", sorted(m for m in MODULES if m.startswith("eval.trial.")))
def test_the_trial_takes_little_from_the_papers(module):
    allowed = TRIAL_READS | ({"papers.checks"} if module == TRIAL_CHECKS else set())
    taken = {room(target) for target in IMPORTS[module] if wing(target) == "papers"}
    assert taken <= allowed, f"{module} imports {sorted(taken - allowed)}"


def test_readers_never_stand_on_writers():
    for module, targets in IMPORTS.items():
        if module in WRITERS or wing(module) == "commands":
            continue
        assert not targets & WRITERS, f"{module} imports {sorted(targets & WRITERS)}"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_long_file(module):
    lines = MODULES[module].read_text(encoding="utf-8").count("\n")
    assert lines <= MOST_LINES, f"{module} has {lines} lines"


def test_every_command_has_a_module():
    from eval.__main__ import COMMANDS

    found = {path.stem for path in (EVAL / "commands").glob("*.py")} - {"__init__"}
    assert set(COMMANDS) == found


@pytest.mark.parametrize(
    ("statement", "spared"),
    [
        ("import eval.__main__; eval.__main__.build_parser()", (*HEAVY, "pydantic")),
        ("import eval.__main__; eval.__main__.build_parser('check')", HEAVY),
    ],
)
def test_a_parser_is_light(statement, spared):
    program = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not set(spared) & set(done.stdout.split())


def test_check_opens_every_file_of_the_papers_once():
    """What a check reads of submission.json and of the logs it reads once."""
    folder = min((ROOT / "records").glob("track_docs_cpu/*/"))
    program = f"""
import collections, os, sys
opened = collections.Counter()
def note(event, arguments):
    if event == "open":
        opened[os.path.basename(str(arguments[0]))] += 1
sys.addaudithook(note)
from eval.__main__ import main
main(["check", {str(folder)!r}])
print(*(f"{{name}}:{{count}}" for name, count in opened.items()), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    counts = dict(word.rsplit(":", 1) for word in done.stderr.split())
    papers = ["submission.json", *(log.name for log in folder.glob("*.log"))]
    assert {name: counts[name] for name in papers} == dict.fromkeys(papers, "1")
