"""What a script asks of a GPU is answered and computed by the CPU.

The checks stand in cuda_on_the_cpu_checks.py and flash_on_the_cpu_checks.py: they change torch for
their whole process."""

import ast
import itertools
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import CLEAN_ENV, ROOT

CHECKS = Path(__file__).with_name("cuda_on_the_cpu_checks.py")
FLASH_CHECKS = CHECKS.with_name("flash_on_the_cpu_checks.py")
SHIM = ROOT / "eval" / "trial" / "canary" / "inside"
SHIM_NAME = "cuda_on_the_cpu"


def names_of_checks() -> list[str]:
    trees = (ast.parse(path.read_text()) for path in (CHECKS, FLASH_CHECKS))
    nodes = itertools.chain.from_iterable(tree.body for tree in trees)
    names = [node.name for node in nodes if isinstance(node, ast.FunctionDef)]
    return [name for name in names if name.startswith("check_")]


def environment_with_shim(folder: Path) -> dict[str, str]:
    """Every interpreter with this environment loads the shim first, as in the sandbox."""
    (folder / SHIM_NAME).symlink_to(SHIM)
    (folder / "sitecustomize.py").write_text(f"import {SHIM_NAME}\n")
    return CLEAN_ENV | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}


def run_with_shim(folder: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *words],
        env=environment_with_shim(folder),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, str]:
    """The traceback of each check, empty where it held."""
    done = run_with_shim(tmp_path_factory.mktemp("shim"), str(CHECKS))
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", names_of_checks())
def test_it_holds(name, results):
    assert results[name] == "", results[name]


def test_an_interpreter_without_torch_stays_quick(tmp_path):
    """The shim itself imports nothing heavy."""
    done = run_with_shim(tmp_path, "-c", "import sys; print('torch' in sys.modules)")
    assert done.stdout == "False\n"


def test_a_missing_package_is_still_missing(tmp_path):
    done = run_with_shim(tmp_path, "-c", "import a_package_that_nobody_has")
    assert "No module named 'a_package_that_nobody_has'" in done.stderr


TRITON = """
import torch, triton, triton.language as tl

@triton.autotune(configs=[triton.Config({"BLOCK": 16}, num_warps=4)], key=["n"])
@triton.jit
def double(x, y, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, 2 * tl.load(x + i, mask=i < n), mask=i < n)

x = torch.arange(40.0, device="cuda")
y = torch.zeros_like(x)
double[lambda meta: (triton.cdiv(40, meta["BLOCK"]),)](x, y, 40)
print(torch.equal(y, 2 * x))
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_triton_interprets_its_kernels(tmp_path):
    (tmp_path / "kernel.py").write_text(TRITON)  # triton reads the source of a kernel
    done = run_with_shim(tmp_path, "kernel.py")
    assert done.stdout == "True\n", done.stderr[-2000:]
