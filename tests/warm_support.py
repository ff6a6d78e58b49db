"""Scripts in forks of an interpreter that has already imported torch.

A fresh Python needs more than three seconds of CPU to import torch, a fork needs none. Ranks are
started as torchrun starts them, by their environment. Tests of what `python` or torchrun itself
does start those: see `start_script`.
"""

import atexit
import functools
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing import connection, forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

# torch._dynamo is what the first optimizer imports, for another three seconds.
PRELOADED = ["torch", "torch._dynamo", "torch.distributed", "numpy", "constriction"]
TIMEOUT_S = 300.0
GRACE_S = 60.0  # for the other ranks to end by themselves when one has failed


def run_warm(
    argv: Sequence[str], env: Mapping[str, str], nproc: int = 1
) -> subprocess.CompletedProcess:
    """Run a script, argv[0], as `python ARGV` would, or as so many ranks.

    The exit code is that of the first rank that failed. Raises TimeoutExpired after TIMEOUT_S."""
    ranks = [env] if nproc == 1 else [dict(env) | rank for rank in _ranks(nproc)]
    with tempfile.TemporaryDirectory() as folder:
        started = [Started(argv, environment, Path(folder)) for environment in ranks]
        try:
            code = _wait([one.process for one in started], argv)
        finally:
            for one in started:
                one.kill()
                one.process.join()
        stdout, stderr = started[0].printed()
    return subprocess.CompletedProcess(list(argv), code, stdout, stderr)


class Started:
    """A script in a fork, with the methods of a Popen that tests use.

    What it prints goes to the files `stdout` and `stderr` in `folder`."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], folder: Path):
        self.folder = folder
        arguments = (list(argv), dict(env), str(folder / "stdout"), str(folder / "stderr"))
        self.process = _warm_interpreter().Process(target=_run, args=arguments)
        self.process.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def terminate(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        self.process.kill()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """(stdout, stderr) when it has ended. Raises TimeoutExpired."""
        self.process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(str(self.folder), timeout)
        return self.printed()

    def printed(self) -> tuple[str, str]:
        """(stdout, stderr) so far."""
        paths = (self.folder / "stdout", self.folder / "stderr")
        stdout, stderr = (path.read_text() if path.exists() else "" for path in paths)
        return stdout, stderr


@functools.cache
def _warm_interpreter() -> ForkServerContext:
    """One for each process that runs tests; it ends with it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    # OpenMP reads this when torch is loaded.
    with mock.patch.dict(os.environ, {"OMP_NUM_THREADS": "1"}):
        forkserver.ensure_running()
    return context


def _ranks(nproc: int) -> list[dict[str, str]]:
    """What torchrun adds to the environment of each rank on one machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        "WORLD_SIZE": str(nproc),
        "LOCAL_WORLD_SIZE": str(nproc),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(nproc)]


def _wait(processes: Sequence[BaseProcess], argv: Sequence[str]) -> int:
    """Until all have ended; once one has failed, the others have GRACE_S left."""
    latest = time.monotonic() + TIMEOUT_S
    failure = 0
    running = list(processes)
    while running:
        left = latest - time.monotonic()
        if left <= 0:
            if failure:
                break
            raise subprocess.TimeoutExpired(list(argv), TIMEOUT_S)
        connection.wait([process.sentinel for process in running], left)
        for process in [process for process in running if process.exitcode is not None]:
            running.remove(process)
            if process.exitcode and not failure:
                failure = process.exitcode
                latest = min(latest, time.monotonic() + GRACE_S)
    return failure


def _run(argv: list[str], env: dict[str, str], stdout: str, stderr: str) -> None:
    """In the fork: be `python ARGV` with this environment and these files for output."""
    os.environ.clear()
    os.environ.update(env)
    for descriptor, path in ((1, stdout), (2, stderr)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", buffering=1, closefd=False)
    sys.argv = argv
    sys.path.insert(0, str(Path(argv[0]).parent))
    try:
        runpy.run_path(argv[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # a fork of this kind ends without them
