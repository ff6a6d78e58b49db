"""The environment that a submission sees: no package of the corpus with its docstrings, and no
package that the rule set does not show."""

import ast
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from eval.errors import UserError
from eval.rules import CURRENT, RULESETS, load_rules
from eval.text.corpus import environment
from eval.text.corpus.dataset import Manifest
from eval.text.corpus.environment import build_copy, strip_docstrings, survey, visible_environment
from eval.trial.sandbox import running as sandbox
from eval.trial.sandbox.job import Job, Limits, Outcome

SOURCES = {
    "module": b'"""A text."""\nimport os\n',
    "future import stays first": b'"""A\ntext."""\n'
    b"from __future__ import annotations\nx: Later = 1\n",
    "only a docstring": b'def f():\n    """Text\n    of two lines."""\n\nclass C:\n    "text"\n',
    "statement behind it": b'class C:\n    """text"""; x = 1\n    y = 2\n',
    "comment behind it": b'def f():\n    """text"""  # why\n    return 1\n',
    "nested": b'class C:\n    """outer\n\n    text"""\n'
    b'    def f(self):\n        r"""inner \\d"""\n        return "kept"\n'
    b'    async def g(self):\n        "a" "b"\n        return """kept"""\n',
    "no docstring": b'def f():\n    x = """kept"""\n    return x\n',
    "not ASCII": '"""Grüße"""\nüber = "日本"  # é\n'.encode(),
}


DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def without_docstrings(raw: bytes) -> ast.Module:
    """The tree of a source, docstrings taken out of the tree."""
    tree = ast.parse(raw)
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            needs_a_body = len(node.body) == 1 and not isinstance(node, ast.Module)
            node.body[:1] = [ast.Pass()] if needs_a_body else []
    return tree


def statements(raw: bytes) -> set[tuple[str, int]]:
    """(type, line) of every statement of a source, `pass` left out."""
    nodes = [node for node in ast.walk(ast.parse(raw)) if isinstance(node, ast.stmt)]
    return {(type(n).__name__, n.lineno) for n in nodes if not isinstance(n, ast.Pass)}


@pytest.mark.parametrize("name", SOURCES)
def test_docstrings_go_and_everything_else_stays(name):
    """Same tree but for the docstrings, same line numbers, same values."""
    raw = SOURCES[name]
    stripped = strip_docstrings(raw)
    assert stripped.count(b"\n") == raw.count(b"\n")
    assert ast.dump(without_docstrings(raw)) == ast.dump(ast.parse(stripped))
    # An assignment may follow a docstring in its line.
    before = statements(raw)
    assert statements(stripped) <= before | {("Assign", line) for _, line in before}


def test_no_python_is_refused():
    with pytest.raises(SyntaxError):
        strip_docstrings(b"def f(:")


INNER = """def f():
    \"\"\"SECRET of f\"\"\"
    assert f.__doc__ is None, "library assertions are off as under -OO"
    return 41 + 1
"""
LOOKS_AT_THE_COPY = """
import inspect, pack
print(pack.__doc__, pack.f.__doc__, pack.f(), 'return 41 + 1' in inspect.getsource(pack.f))
"""


@pytest.fixture
def package(tmp_path) -> Path:
    """Sources with docstrings, a file of another Python, a text, tests and a folder of data."""
    folder = tmp_path / "site" / "pack"
    (folder / "data" / "deep").mkdir(parents=True)
    (folder / "tests").mkdir()
    (folder / "__init__.py").write_text('"""SECRET of the package"""\nfrom pack.inner import f\n')
    (folder / "inner.py").write_text(INNER)
    (folder / "broken.py").write_text("def f(:")
    (folder / "notes.md").write_text("SECRET")
    (folder / "tests" / "test_x.py").write_text('"""SECRET"""')
    (folder / "data" / "deep" / "table.csv").write_text("1,2")
    return folder


def test_a_copy_is_importable_and_holds_no_docstring(package, tmp_path):
    texts, plain = survey(package)
    assert plain == [package / "data"]
    copy = tmp_path / "copy" / "pack"
    build_copy(package, copy, texts, plain)
    files = [path for path in copy.rglob("*") if path.is_file()]
    held = sorted(str(path.relative_to(copy)) for path in files if path.suffix != ".pyc")
    assert held == ["__init__.py", "inner.py"]
    assert not any(b"SECRET" in path.read_bytes() for path in files)
    program = f"import sys; sys.path.insert(0, {str(copy.parent)!r}){LOOKS_AT_THE_COPY}"
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["None", "None", "42", "True"]


def manifest(packages: dict[str, str]) -> Manifest:
    described = {
        "file": "t",
        "kind": "bytes",
        "sha256": "0" * 64,
        "vocab_size": 260,
        "lossless": True,
    }
    return Manifest(
        format=1,
        name="x",
        corpus="docs",
        version="0" * 64,
        tokenizer=described,
        splits={},
        provenance={"recipe": {"packages": packages}},
    )


def works() -> str | None:
    """The first method of isolation that works here."""
    if sys.platform != "linux":
        return None
    methods = [name for name in ("bubblewrap", "unshare") if sandbox.unavailable(name) is None]
    return methods[0] if methods else None


needs_sandbox = pytest.mark.skipif(
    works() is None, reason="neither bubblewrap nor namespaces work here"
)
LOOKS_AROUND = """
import os, sys, numpy, tqdm
print(tqdm.tqdm.__doc__, len(numpy.linalg.svd.__doc__) > 100)
for name in ("networkx", "scipy", "matplotlib", "pip", "setuptools"):
    try:
        __import__(name)
        print("found", name)
    except ImportError:
        pass
print([p for p in ("networkx", "numpy", "scipy") if p in os.listdir(SITE)])
open(SITE + "/networkx/__init__.py")
"""
LOOKS_FOR_DISTUTILS = """
import cmd, sysconfig
try:
    from distutils.filelist import FileList
    print("found")
except ImportError:
    print("hidden")
open(sysconfig.get_paths()["stdlib"] + "/distutils/filelist.py")
"""


def run_with(program: str, docs_track: bool, packages: dict[str, str]) -> Outcome:
    """Run a program in the environment of a record on a corpus of these packages."""
    emptied, binds = visible_environment(manifest(packages), docs_track, load_rules())
    job = Job(
        {"a.py": program.encode()},
        {},
        ["{code}/a.py"],
        limits=Limits(wall_seconds=60),
        binds=binds,
        emptied=emptied,
    )
    return sandbox.run(job, works())


@needs_sandbox
def test_what_is_not_in_the_list_cannot_be_imported_and_what_is_has_no_docstrings(
    tmp_path, monkeypatch
):
    """tqdm stands for a package of the corpus that a record may import: it is small, so that its
    copy is made in no time."""
    monkeypatch.setattr(environment, "store", lambda: tmp_path)
    site = str(Path(importlib.util.find_spec("tqdm").origin).parents[1])
    outcome = run_with(f"SITE = {site!r}\n{LOOKS_AROUND}", True, {"tqdm": "0"})
    assert outcome.stdout.splitlines() == ["None True", "['numpy']"], outcome.stderr
    seen = outcome.seen["outside"]
    assert {"package networkx", "package scipy", "package matplotlib"} <= set(seen)
    # an environment below /tmp is hidden by the run's own /tmp, which is not outside
    below_tmp = site.startswith("/tmp/")
    assert below_tmp or any(path.endswith("networkx/__init__.py") for path in seen)


@needs_sandbox
@pytest.mark.skipif(sys.version_info >= (3, 12), reason="this Python has no distutils")
@pytest.mark.parametrize("docs_track", [True, False])
def test_the_librarys_distutils_is_hidden_on_the_docs_track(docs_track):
    """setuptools, a package of the corpus, has its docstrings. Modules of the same names as its
    own stay what they are."""
    outcome = run_with(LOOKS_FOR_DISTUTILS, docs_track, {})
    assert outcome.stdout.split() == ["hidden" if docs_track else "found"], outcome.stderr
    opened = [path.rpartition("/")[2] for path in outcome.seen["outside"]]
    assert opened == (["filelist.py"] if docs_track else [])


def visible_names(docs_track: bool) -> set[str]:
    _, shown = visible_environment(manifest({}), docs_track, load_rules())
    return {Path(path).name for path in shown}


def test_other_tracks_may_compile():
    """Off the docs track, whose corpus they are part of, the packages that torch.compile imports
    are there."""
    on_docs = visible_names(docs_track=True)
    assert "numpy" in on_docs and "networkx" not in on_docs
    assert {"numpy", "networkx"} <= visible_names(docs_track=False)


# --- Rule sets ---


def test_every_rule_is_read_somewhere():
    """A rule that nothing reads would promise what the referee does not do."""
    paths = [path for path in RULESETS.parent.rglob("*.py") if path.name != "rules.py"]
    sources = "".join(path.read_text() for path in paths)
    rules = load_rules()
    sections = [rules.policy, rules.score, rules.tolerance, rules.limits, rules.packages]
    names = []
    for section in [*sections, rules.profile["quick"]]:
        names += type(section).model_fields
    assert [name for name in names if f".{name}" not in sources] == []


def test_current_rules_have_both_levels():
    assert load_rules().name == CURRENT and set(load_rules().profile) == {"quick", "full"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("name = 'x'", "not a rule set"),
        ("name = ", "not a rule set"),
        (None, "no such rule set"),
        ("other", "a rule set is named as its file"),
    ],
)
def test_bad_rule_sets_are_user_errors(tmp_path, monkeypatch, text, complaint):
    import eval.rules

    monkeypatch.setattr(eval.rules, "RULESETS", tmp_path)
    if text == "other":
        shutil.copyfile(RULESETS / f"{CURRENT}.toml", tmp_path / "x.toml")
    elif text is not None:
        (tmp_path / "x.toml").write_text(text)
    load_rules.cache_clear()
    with pytest.raises(UserError, match=complaint):
        load_rules("x")
    load_rules.cache_clear()
