"""Containers, the notebook, and systems without POSIX modules: what can be shown without them."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import data.__main__
import eval.__main__
import tools.__main__
from tools.desk.reading import State, read_run

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "walk.ipynb"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
RECORDS = ROOT / "records" / "track_docs_cpu"


def require_accepted(command: str) -> None:
    """Fails where a command's program, target or flags do not exist. Nothing is run."""
    words = shlex.split(command)
    if words[0] == "make":
        done = subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, capture_output=True)
        assert done.returncode == 0, (command, done.stderr)
        return
    assert words[1] == "-m" and words[0].endswith("python"), command
    package, *arguments = words[2:]
    if package == "data":
        data.__main__.command_line().parse_args(arguments)
    else:
        module = {"eval": eval.__main__, "tools": tools.__main__}[package]
        module.build_parser(arguments[0]).parse_args(arguments)


# --- containers -----------------------------------------------------------------------------------


def test_the_image_copies_what_is_there_and_runs_targets_that_exist():
    instructions = re.sub(r"\\\n\s*", " ", DOCKERFILE).splitlines()
    copied = [line.split()[1:-1] for line in instructions if line.startswith("COPY")]
    assert copied == [["requirements.txt", "Makefile"], ["."]]
    assert all((ROOT / name).exists() for name in copied[0])
    assert "RUN make setup && rm -rf /root/.cache" in instructions
    require_accepted("make setup")
    (started,) = [json.loads(line[4:]) for line in instructions if line.startswith("CMD ")]
    require_accepted(shlex.join(started))


def test_the_image_holds_nothing_that_is_made_here():
    """What git ignores as large or private stays outside the build's context."""
    left_out = set((ROOT / ".dockerignore").read_text().split())
    assert {".git", ".venv", "runs", "data/datasets", "data/tokenizers"} <= left_out
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout
    for name in left_out - {"**/__pycache__"}:
        assert not re.search(rf"^{re.escape(name)}(/|$)", tracked, flags=re.M), name


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_the_devcontainers_build_the_same_image(kind):
    path = ROOT / ".devcontainer" / kind / "devcontainer.json"
    content = json.loads(path.read_text())
    assert (path.parent / content["build"]["dockerfile"]).resolve() == ROOT / "Dockerfile"
    assert (path.parent / content["build"]["context"]).resolve() == ROOT
    base = content["build"].get("args", {}).get("BASE")
    assert (base is not None) == (kind == "cuda")
    if base is not None:
        assert re.search(r"^ARG BASE=", DOCKERFILE, flags=re.M)
        assert f"--build-arg BASE={base} ." in DOCKERFILE
        assert base in (ROOT / "docs" / "running.md").read_text()
    require_accepted(content["postCreateCommand"])


# --- the notebook ---------------------------------------------------------------------------------


def cells(kind: str) -> list[str]:
    book = json.loads(NOTEBOOK.read_text())
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in book["cells"]]
    assert len(set(ids)) == len(ids)
    found = []
    for cell in book["cells"]:
        assert cell["cell_type"] in ("markdown", "code")
        if cell["cell_type"] == kind:
            assert kind == "markdown" or (cell["outputs"], cell["execution_count"]) == ([], None)
            found.append("".join(cell["source"]))
    return found


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """What the notebook's commands would have left behind, in short."""
    (tmp_path / "train_gpt.py").write_text("")
    run = tmp_path / "runs/walk_seed1337"
    run.mkdir(parents=True)
    records = [{"event": "step", "step": s, "train_loss": 5 / s} for s in range(1, 5)]
    records += [{"event": "validation", "step": 4, "val_loss": 1.5}]
    records += [{"event": "result", "step": 4, "val_bpb": 1.75}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    track = tmp_path / "records/track_docs_cpu"
    shutil.copytree(RECORDS / "2026-11-28_hashed-ngram", track / "2026-11-28_hashed-ngram")
    shutil.copytree(RECORDS / "2026-11-24_wikigpt", track / "2026-12-01_walk")
    sweep = tmp_path / "runs/walk-muon-lr"
    sweep.mkdir()
    shutil.copyfile(ROOT / "bench/results/cpu.png", sweep / "picture.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    return tmp_path


def test_the_notebook_runs_from_top_to_bottom(project, capsys):
    """Its commands are accepted by the programs that they name; all else is executed."""
    first, *others = cells("code")
    namespace: dict = {}
    exec(first, namespace)
    namespace["run"]("echo one; exit 3")
    assert capsys.readouterr().out == "one\nexit code 3\n"
    commands: list[str] = []
    namespace["run"] = commands.append
    for source in others:
        exec(source, namespace)
    said = capsys.readouterr().out
    assert "4 logged steps, 1 validations, val_bpb 1.75000" in said
    assert re.search(r"verdict PASS, level \w+, rules", said)
    assert "verdict INVALID" in said and "found 969.05" in said
    assert [command.split()[0] for command in commands].count("make") == 2
    assert len(commands) == 6
    for command in commands:
        require_accepted(command)


def test_the_notebook_links_to_pages_that_exist():
    text = "\n".join(cells("markdown"))
    links = re.findall(r"\]\(([^)#]+)", text)
    assert links and all((NOTEBOOK.parent / link).is_file() for link in links)


# --- systems without POSIX modules ----------------------------------------------------------------


def test_runs_are_read_without_locks_and_resource_limits(tmp_path, monkeypatch):
    """As on Windows: a run that was written to lately counts as at work."""
    import train_gpt as tg

    for name in ("fcntl", "resource"):
        monkeypatch.setitem(sys.modules, name, None)
    assert tg.peak_memory_mib(tg.CPU) is None
    metrics = tg.Metrics(tmp_path / "metrics.jsonl")
    metrics.write("step", 1, {"train_loss": 3.0})
    metrics.close()
    (tmp_path / "train.log").write_text("log_format:1\nstep:1/4 train_loss:3.0 train_time:5ms\n")
    found = read_run(tmp_path)
    assert (found.state, found.points[0].train_loss) == (State.RUNNING, 3.0)


def test_the_commands_of_windows_start_without_posix_modules():
    """`check`, `runs` and the data commands import nothing that Windows lacks."""
    code = (
        "import sys\n"
        "for name in ('fcntl', 'resource', 'pwd', 'grp', 'termios'):\n"
        "    sys.modules[name] = None\n"
        "import data.__main__, eval.__main__, tools.__main__, tools.desk.queue, tools.sweep\n"
        "eval.__main__.build_parser('check'), tools.__main__.build_parser('runs')\n"
        "sys.exit(eval.__main__.main(['check', sys.argv[1]]))\n"
    )
    command = [sys.executable, "-c", code, str(RECORDS / "2026-11-24_wikigpt")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "PASS" in done.stdout, done.stderr
