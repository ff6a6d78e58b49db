"""The installed referee: the wheel holds all of `eval`, and `check` runs from it alone."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from check_support import GOOD, public_folder, public_logs

ROOT = Path(__file__).resolve().parents[1]
BUILD = "from setuptools import build_meta; build_meta.build_wheel('dist')"
# What the wheel must do without, besides numpy and the like of other commands.
ABSENT = ("torch", "numpy", "scipy", "jinja2", "matplotlib", "rich", "sentencepiece")
BLOCKED = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
from golf_referee import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built offline from a copy of the sources."""
    pytest.importorskip("setuptools", reason="builds the wheel with setuptools")
    source = tmp_path_factory.mktemp("source")
    nothing_built = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in ("eval", "tools/golf_referee"):
        shutil.copytree(ROOT / name, source / name, ignore=nothing_built)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    command = [sys.executable, "-c", BUILD]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def referee(installed: Path, *arguments: object) -> subprocess.CompletedProcess:
    """`golf-referee ARGUMENTS` with pydantic, but without the heavy packages."""
    return subprocess.run(
        [sys.executable, "-c", BLOCKED, *map(str, arguments)],
        cwd=installed.parent,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(installed)},
        check=False,
    )


def test_every_file_of_the_referee_is_in_the_wheel(installed):
    library = installed / "golf_referee" / "lib"
    for path in (ROOT / "eval").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert (library / path.relative_to(ROOT)).is_file(), path


def test_no_name_that_other_projects_use(installed):
    names = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert names == {"golf_referee"}


def test_check_runs_without_heavy_packages(installed, tmp_path):
    stated = GOOD | {"val_bpb": 1.1, "val_loss": 1.1 * 1.68846}
    folder = public_folder(tmp_path, stated, public_logs({1: 1.1, 2: 1.1, 3: 1.1}))
    done = referee(installed, "check", folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1].startswith("verdict  PASS")


@pytest.mark.parametrize("arguments", [("score", "x"), ("compare", "x", "x"), ("audit", "x")])
def test_what_is_not_installed_is_one_line(installed, arguments):
    done = referee(installed, *arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_dependencies_are_what_the_project_pins():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    pinned = {line.partition("==")[0].lower() for line in requirements()}
    wanted = [*project["dependencies"], *project["optional-dependencies"]["all"]]
    for requirement in wanted:
        name = requirement.replace("[", ">").partition(">")[0].lower()
        assert name in pinned | {"golf-referee"}, requirement
    assert project["scripts"] == {"golf-referee": "golf_referee:main"}


def requirements() -> list[str]:
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    return [line for line in lines if "==" in line]
