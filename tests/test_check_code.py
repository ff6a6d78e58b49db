"""Questions of `check` about the script, and about what it loads."""

import sys

import pytest
from check_support import public_log, verdicts
from question_support import (
    LOG,
    SCRIPT,
    answer,
    contest_folder,
    edited,
    wrapped,
)
from records_support import cli

from eval.commands import audit, score
from eval.errors import UserError
from eval.papers.checks.report import Severity
from eval.rules import Verdict
from eval.trial.runner.python import require_python

# --- The script ---


@pytest.mark.parametrize("code", ["", "\n\n", '"""Nothing but words."""\n', "pass\n"])
def test_a_script_without_statements_is_empty(tmp_path, code):
    assert "is empty" in verdicts(contest_folder(tmp_path, code=code))["compiles"]


NEWER = 'import os\nprint(f"{os.environ.get("HOME")}")\n'  # PEP 701: Python 3.12


def with_python(version):
    """A log that names its Python, None for one that does not."""
    first = "" if version is None else f"Running Python {version} (main)\n"
    return {LOG: first + public_log(1, 1.1)}


@pytest.mark.parametrize("wrap", [str, wrapped])
@pytest.mark.parametrize(
    ("logged", "verdict", "words"),
    [
        (None, Verdict.CANNOT_TELL, "needs Python 3.12, this is"),
        ("3.12.3", Verdict.CANNOT_TELL, "needs Python 3.12, this is"),
        ("3.10.12", Verdict.FAIL, "needs Python 3.12, its log says 3.10"),
    ],
)
def test_newer_syntax_than_ours_is_no_fault(tmp_path, wrap, logged, verdict, words):
    if sys.version_info >= (3, 12) and verdict is Verdict.CANNOT_TELL:
        pytest.skip("this Python reads the syntax of 3.12")
    folder = contest_folder(tmp_path, logs=with_python(logged), code=wrap(NEWER))
    outcome = answer(folder, "compiles")
    assert outcome.verdict is verdict
    assert words in outcome.detail
    assert ("inside" in outcome.detail) is (wrap is wrapped)


NEW_IN_312 = (
    "def f[T: (int, str)](x: T):\n    return x\n",
    "def f[\n    T,\n](x: T):\n    return x\n",
    "type A[T: list[int]] = dict[str, T]\n",
)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="this Python reads the syntax of 3.12")
@pytest.mark.parametrize("code", NEW_IN_312)
def test_type_parameters_are_no_fault(tmp_path, code):
    outcome = answer(contest_folder(tmp_path, code=code), "compiles")
    assert outcome.verdict is Verdict.CANNOT_TELL
    assert "needs Python 3.12" in outcome.detail


def test_what_only_a_newer_python_could_read_is_no_proof(tmp_path):
    """The log names a Python whose grammar the referee's own parser does not know."""
    newer = f"{sys.version_info[0]}.{sys.version_info[1] + 1}"
    folder = contest_folder(tmp_path, logs=with_python(f"{newer}.1"), code="def f(:\n")
    outcome = answer(folder, "compiles")
    assert outcome.verdict is Verdict.CANNOT_TELL
    assert f"is for Python {newer} by its log" in outcome.detail


def test_the_source_inside_a_wrapper_is_compiled(tmp_path):
    sound = contest_folder(tmp_path / "sound", code=wrapped("x = 1\n"))
    assert "inside exec, lzma, base85" in answer(sound, "compiles").detail
    broken = contest_folder(tmp_path / "broken", code=wrapped("def f(:\n"))
    assert "inside exec, lzma, base85" in verdicts(broken)["compiles"]
    empty = contest_folder(tmp_path / "empty", code=wrapped("\n"))
    assert "is empty" in verdicts(empty)["compiles"]


def test_a_text_that_only_running_shows_is_open(tmp_path):
    folder = contest_folder(tmp_path, code="exec(open('elsewhere').read())\n")
    assert "only running it shows" in verdicts(folder, Verdict.CANNOT_TELL)["compiles"]


@pytest.mark.parametrize(
    ("stated", "verdict"),
    [
        (len(SCRIPT), Verdict.PASS),
        (len(SCRIPT) + 1, Verdict.PASS),  # as a checkout of Windows has it
        (len(SCRIPT) - 1, Verdict.PASS),  # without the last line's end
        (len(SCRIPT) + 2, Verdict.FAIL),
    ],
)
def test_a_script_has_the_stated_size(tmp_path, stated, verdict):
    log = edited(public_log(1, 1.1), "Code size: 12 bytes\n", "")
    folder = contest_folder(tmp_path, {"bytes_code": stated}, {LOG: log})
    assert answer(folder, "code_bytes").verdict is verdict


PRINTED = "import os\n\n\ndef main():\n    rate = 0.04\n    print(os.name, rate)\n\n\nmain()\n"
RULER = "=" * 100 + "\n"


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("rate = 0.04", "rate = 0.04", None),
        ("rate = 0.04", "rate = 0.04  # as before", None),
        ("rate = 0.04", "rate = 0.05", 5),
        ("print(os.name, rate)", "print(os.name)", 6),
    ],
)
def test_the_printed_source_is_compared_with_the_script(tmp_path, old, new, line):
    log = PRINTED + RULER + public_log(1, 1.1)
    folder = contest_folder(tmp_path, logs={LOG: log}, code=edited(PRINTED, old, new))
    outcome = answer(folder, "source")
    if line is None:
        assert outcome.verdict is Verdict.PASS
        return
    assert outcome.verdict is Verdict.FAIL
    ours, theirs = outcome.evidence
    assert (ours.line, theirs.line) == (line, line)
    assert ours.text == new
    assert theirs.text == old


@pytest.mark.parametrize(
    ("kept", "verdict", "words"),
    [
        (9, Verdict.PASS, "line by line"),
        (5, Verdict.CANNOT_TELL, "embeds lines 1-5 of 9 of train_gpt.py; the rest is not shown"),
    ],
)
def test_a_part_of_the_source_ties_no_more_than_itself(tmp_path, kept, verdict, words):
    shown = "".join(PRINTED.splitlines(keepends=True)[:kept])
    log = shown + RULER + public_log(1, 1.1)
    outcome = answer(contest_folder(tmp_path, logs={LOG: log}, code=PRINTED), "source")
    assert outcome.verdict is verdict
    assert words in outcome.detail
    assert outcome.severity is (Severity.BLOCKING if kept == 9 else Severity.EXPLAIN)


def test_a_log_in_ascii_shows_other_letters_as_question_marks(tmp_path):
    code = edited(PRINTED, "os.name, rate", "os.name, rate, '\u2581'")
    shown = code.encode("ascii", "replace").decode()
    folder = contest_folder(tmp_path, logs={LOG: shown + RULER + public_log(1, 1.1)}, code=code)
    assert answer(folder, "source").verdict is Verdict.PASS


# --- What it loads ---

HELPER = "x = 2\n" * 30  # 180 bytes
IMPORTING = "import tilt\n"  # as long as SCRIPT


def weighing(weights):
    log = edited(public_log(1, 1.1), ": 1000 bytes", f": {weights} bytes")
    return {LOG: edited(log, ": 1012 bytes", f": {weights + 12} bytes")}


@pytest.mark.parametrize(
    ("weights", "code", "verdict"),
    [
        (15_999_900, IMPORTING, Verdict.FAIL),
        (15_000_000, IMPORTING, Verdict.CANNOT_TELL),  # in no count, and there is room for it
        (15_999_900, SCRIPT, Verdict.PASS),  # nobody loads it
    ],
)
def test_imported_files_count(tmp_path, weights, code, verdict):
    stated = {"bytes_total": weights + 12}
    folder = contest_folder(tmp_path, stated, weighing(weights), code)
    (folder / "tilt.py").write_text(HELPER)
    outcome = answer(folder, "uncounted")
    assert outcome.verdict is verdict
    assert "tilt.py" in outcome.detail


@pytest.mark.parametrize(
    ("helper", "verdict", "words"),
    [
        ("x = 1\n", Verdict.PASS, "compiles and runs model.py"),
        ("def f(:\n", Verdict.FAIL, "model.py: "),
    ],
)
def test_a_script_may_execute_the_file_beside_it(tmp_path, helper, verdict, words):
    code = "from pathlib import Path\nexec(Path(__file__).with_name('model.py').read_text())\n"
    folder = contest_folder(tmp_path, {"bytes_code": len(code)}, code=code)
    (folder / "model.py").write_text(helper)
    outcome = answer(folder, "compiles")
    assert outcome.verdict is verdict
    assert words in outcome.detail
    assert "imports model.py" in answer(folder, "uncounted").detail


def test_an_empty_package_file_is_no_fault(tmp_path):
    folder = contest_folder(tmp_path, code="import parts.one\n")
    (folder / "parts").mkdir()
    (folder / "parts" / "__init__.py").write_text("")
    (folder / "parts" / "one.py").write_text("x = 1\n")
    assert answer(folder, "compiles").verdict is Verdict.PASS


def test_a_file_that_the_script_names_is_asked_for(tmp_path):
    code = "import ctypes\nctypes.CDLL('kernel.so')\n"
    folder = contest_folder(tmp_path, {"bytes_code": len(code)}, code=code)
    (folder / "kernel.so").write_bytes(b"\x7fELF")
    assert "names kernel.so" in verdicts(folder, Verdict.CANNOT_TELL)["uncounted"]


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        ("import torch\nimport numpy as np\nimport math\n", Verdict.PASS),
        ("import my_layers\n", Verdict.FAIL),
        ("if False:\n    import my_layers\n", Verdict.CANNOT_TELL),
        ("def f():\n    from my_layers import g\n", Verdict.CANNOT_TELL),
        ("try:\n    import my_layers\nexcept ImportError:\n    my_layers = None\n", Verdict.PASS),
        ("from .core import g\n", Verdict.FAIL),
    ],
)
def test_modules_that_nobody_provides(tmp_path, code, verdict):
    assert answer(contest_folder(tmp_path, code=code), "modules").verdict is verdict


def test_a_module_that_readme_names_is_asked_for(tmp_path):
    folder = contest_folder(tmp_path, code="import my_layers\n")
    (folder / "README.md").write_text("val_bpb 1.1\n\npip install my-layers\n")
    assert answer(folder, "modules").verdict is Verdict.CANNOT_TELL


GUARDED = "import contextlib\nwith contextlib.suppress(ImportError):\n    import my_layers\n"
INSTALLING = (
    "import subprocess, sys\n"
    "subprocess.run([sys.executable, '-m', 'pip', 'install', 'zopfli'])\n"
    "import zopfli\n"
)


@pytest.mark.parametrize(
    "code",
    [
        GUARDED,
        INSTALLING,
        "from compression import zstd\n",
        "import distutils, imp, cgi, binhex, tomllib\n",
    ],
)
def test_modules_that_are_provided_elsewhere(tmp_path, code):
    assert answer(contest_folder(tmp_path, code=code), "modules").verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("code", "file", "text"),
    [
        ("import sys\nsys.path.insert(0, '..')\nimport my_layers\n", "notes.txt", ""),
        ("import my_layers\n", "run.sh", "export PYTHONPATH=/opt/layers\n"),
        ("import my_layers\n", "run.sh", "uv sync\n"),
        ("import my_layers\n", "requirements-gpu.txt", "layers-for-all\n"),
        ("import my_layers\n", "pyproject.toml", "[project]\n"),
    ],
)
def test_a_module_that_may_lie_elsewhere_is_asked_for(tmp_path, code, file, text):
    folder = contest_folder(tmp_path, code=code)
    (folder / file).write_text(text)
    assert answer(folder, "modules").verdict is Verdict.CANNOT_TELL


def test_a_package_may_give_a_module_of_another_name(tmp_path):
    folder = contest_folder(tmp_path, code="import PIL.Image\n")
    (folder / "requirements.txt").write_text("Pillow>=10\n")
    assert answer(folder, "modules").verdict is Verdict.PASS


def test_a_module_that_is_missing_decides_no_verdict(tmp_path):
    folder = contest_folder(tmp_path, {"bytes_code": 17}, code="import my_layers\n")
    outcome = answer(folder, "modules")
    assert outcome.verdict is Verdict.FAIL
    assert outcome.severity is Severity.EXPLAIN


def test_requirements_and_helpers_provide_modules(tmp_path):
    folder = contest_folder(tmp_path, code="import my_layers\nimport odd_package\n")
    (folder / "requirements.txt").write_text("# what it needs\nodd-package==1.0\n")
    (folder / "my_layers").mkdir()
    (folder / "my_layers" / "__init__.py").write_text("import math\n")
    assert answer(folder, "modules").verdict is Verdict.PASS


# --- A trial by the wrong Python ---


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="this Python reads the syntax of 3.12")
@pytest.mark.parametrize("command", [score, audit])
def test_a_trial_refuses_a_script_of_a_newer_python(tmp_path, command):
    """Not INVALID: the record may be sound, only this referee cannot run it."""
    (tmp_path / "train_gpt.py").write_text(NEWER)
    (tmp_path / "artifact_seed1.bin").write_bytes(b"weights")
    with pytest.raises(UserError, match=r"run the referee with Python 3\.12 or newer"):
        cli(command, tmp_path)


@pytest.mark.parametrize("source", ["x = 1\n", "def f(:\n"])
def test_a_trial_takes_what_this_python_reads_or_none_does(tmp_path, source):
    script = tmp_path / "train_gpt.py"
    script.write_text(source)
    require_python(script)
