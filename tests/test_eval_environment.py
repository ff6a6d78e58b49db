"""The environment that a submission sees: no package of the corpus with its docstrings, no package that the rule set does not show."""

import ast
import importlib.util
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
from eval.trial.sandbox.job import Job, Limits

SOURCES = {
    "module": b'"""A text."""\nimport os\n',
    "future import stays first": b'"""A\ntext."""\nfrom __future__ import annotations\nx: Later = 1\n',
    "only a docstring": b'def f():\n    """Text\n    of two lines."""\n\nclass C:\n    "text"\n',
    "statement behind it": b'class C:\n    """text"""; x = 1\n    y = 2\n',
    "comment behind it": b'def f():\n    """text"""  # why\n    return 1\n',
    "nested": b'class C:\n    """outer\n\n    text"""\n    def f(self):\n        r"""inner \\d"""\n        return "kept"\n'
    b'    async def g(self):\n        "a" "b"\n        return """kept"""\n',
    "no docstring": b'def f():\n    x = """kept"""\n    return x\n',
    "not ASCII": '"""Grüße"""\nüber = "日本"  # é\n'.encode(),
}


@pytest.mark.parametrize("name", SOURCES)
def test_docstrings_go_and_everything_else_stays(name):
    """Same tree but for the docstrings, same line numbers, same values."""
    raw = SOURCES[name]
    stripped = strip_docstrings(raw)
    before, after = ast.parse(raw), ast.parse(stripped)
    assert stripped.count(b"\n") == raw.count(b"\n")
    for node in ast.walk(before):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and ast.get_docstring(node) is not None
        ):
            node.body[:1] = (
                [ast.Pass()] if len(node.body) == 1 and not isinstance(node, ast.Module) else []
            )
    assert ast.dump(before) == ast.dump(after)
    lines = [
        (type(n).__name__, n.lineno)
        for n in ast.walk(after)
        if isinstance(n, ast.stmt) and not isinstance(n, ast.Pass)
    ]
    expected = {
        (type(n).__name__, n.lineno) for n in ast.walk(ast.parse(raw)) if isinstance(n, ast.stmt)
    }
    assert set(lines) <= expected | {("Assign", line) for _, line in expected}


def test_no_python_is_refused():
    with pytest.raises(SyntaxError):
        strip_docstrings(b"def f(:")


def test_a_copy_is_importable_and_holds_no_docstring(tmp_path):
    package = tmp_path / "site" / "pack"
    (package / "data" / "deep").mkdir(parents=True)
    (package / "tests").mkdir()
    (package / "__init__.py").write_text('"""SECRET of the package"""\nfrom pack.inner import f\n')
    (package / "inner.py").write_text(
        'def f():\n    """SECRET of f"""\n    assert f.__doc__ is None, "library assertions are off as under -OO"\n    return 41 + 1\n'
    )
    (package / "broken.py").write_text("def f(:")
    (package / "notes.md").write_text("SECRET")
    (package / "tests" / "test_x.py").write_text('"""SECRET"""')
    (package / "data" / "deep" / "table.csv").write_text("1,2")
    texts, plain = survey(package)
    assert plain == [package / "data"]
    copy = tmp_path / "copy" / "pack"
    build_copy(package, copy, texts, plain)
    held = sorted(
        str(p.relative_to(copy)) for p in copy.rglob("*") if p.is_file() and p.suffix != ".pyc"
    )
    assert held == ["__init__.py", "inner.py"]
    assert not any(b"SECRET" in p.read_bytes() for p in copy.rglob("*") if p.is_file())
    code = "import pack, inspect; print(pack.__doc__, pack.f.__doc__, pack.f(), 'return 41 + 1' in inspect.getsource(pack.f))"
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-c",
            f"import sys; sys.path.insert(0, {str(copy.parent)!r}); {code}",
        ],
        capture_output=True,
        text=True,
        check=True,
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
    return next(
        (
            m
            for m in ("bubblewrap", "unshare")
            if sys.platform == "linux" and sandbox.unavailable(m) is None
        ),
        None,
    )


@pytest.mark.skipif(works() is None, reason="neither bubblewrap nor namespaces work here")
def test_what_is_not_in_the_list_cannot_be_imported_and_what_is_has_no_docstrings(
    tmp_path, monkeypatch
):
    """constriction stands for a package of the corpus that a record may import: small, so that its copy is made in no time."""
    monkeypatch.setattr(environment, "store", lambda: tmp_path)
    emptied, binds = visible_environment(
        manifest({"tqdm": "0"}), docs_track=True, rules=load_rules()
    )
    code = (
        "import sys, os, numpy, tqdm\nprint(tqdm.tqdm.__doc__, len(numpy.linalg.svd.__doc__) > 100)\n"
        "for name in ('networkx', 'scipy', 'matplotlib', 'pip', 'setuptools'):\n    try:\n        __import__(name)\n        print('found', name)\n"
        "    except ImportError:\n        pass\n"
        f"print(sorted(p for p in os.listdir({str(Path(tqdm_folder()).parent)!r}) if p in ('scipy', 'networkx', 'numpy')))\n"
        f"open({str(Path(tqdm_folder()).parent / 'networkx' / '__init__.py')!r})"
    )
    job = Job(
        {"a.py": code.encode()},
        {},
        ["{code}/a.py"],
        limits=Limits(wall_seconds=60),
        binds=binds,
        emptied=emptied,
    )
    outcome = sandbox.run(job, works())
    assert outcome.stdout.splitlines() == ["None True", "['numpy']"], outcome.stderr
    seen = outcome.seen["outside"]
    assert {"package networkx", "package scipy", "package matplotlib"} <= set(seen)
    assert any(path.endswith("networkx/__init__.py") for path in seen)


def tqdm_folder() -> str:
    return str(Path(importlib.util.find_spec("tqdm").origin).parent)


@pytest.mark.skipif(works() is None, reason="neither bubblewrap nor namespaces work here")
@pytest.mark.skipif(sys.version_info >= (3, 12), reason="this Python has no distutils")
@pytest.mark.parametrize("docs_track", [True, False])
def test_the_librarys_distutils_is_hidden_on_the_docs_track(docs_track):
    """setuptools, a package of the corpus, has its docstrings. Modules of the same names as its own stay what they are."""
    emptied, binds = visible_environment(manifest({}), docs_track, load_rules())
    code = "import cmd, sysconfig\ntry:\n    from distutils.filelist import FileList\n    print('found')\nexcept ImportError:\n    print('hidden')\n"
    code += "open(sysconfig.get_paths()['stdlib'] + '/distutils/filelist.py')\n"
    job = Job(
        {"a.py": code.encode()},
        {},
        ["{code}/a.py"],
        limits=Limits(wall_seconds=60),
        binds=binds,
        emptied=emptied,
    )
    outcome = sandbox.run(job, works())
    assert outcome.stdout.split() == ["hidden" if docs_track else "found"], outcome.stderr
    assert [path.rpartition("/")[2] for path in outcome.seen["outside"]] == (
        ["filelist.py"] if docs_track else []
    )


def test_other_tracks_may_compile():
    """Off the docs track, whose corpus they are part of, the packages that torch.compile imports are there."""
    names = {
        name: {
            Path(p).name
            for p in visible_environment(
                manifest({}), docs_track=name == "docs", rules=load_rules()
            )[1]
        }
        for name in ("docs", "other")
    }
    assert "numpy" in names["docs"] and "networkx" not in names["docs"]
    assert {"numpy", "networkx"} <= names["other"]


# --- Rule sets ---


def test_every_rule_is_read_somewhere():
    """A rule that nothing reads would promise what the referee does not do."""
    sources = "".join(
        path.read_text() for path in RULESETS.parent.rglob("*.py") if path.name != "rules.py"
    )
    rules = load_rules()
    sections = [
        rules.policy,
        rules.score,
        rules.tolerance,
        rules.limits,
        rules.packages,
        rules.profile["quick"],
    ]
    assert [
        name
        for section in sections
        for name in type(section).model_fields
        if f".{name}" not in sources
    ] == []


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
    if text is not None:
        (tmp_path / "x.toml").write_text(
            (RULESETS / f"{CURRENT}.toml").read_text() if text == "other" else text
        )
    load_rules.cache_clear()
    with pytest.raises(UserError, match=complaint):
        load_rules("x")
    load_rules.cache_clear()
