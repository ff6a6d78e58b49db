"""Runs a submission where it can read its code, its inputs and the Python environment, and nothing else.

Mechanisms, in this order: `bubblewrap` (bwrap >= 0.7); `unshare` (the same root built by inside/jail.py with the kernel's own calls,
as root or in a user namespace); `none`, only on request, which limits time, memory and output but hides nothing.

What the first two give: an empty root with read-only binds, so outside paths do not exist; no network but its own loopback; private
/tmp and /out in memory with a size; a PID namespace whose end is the end of every process in it; no capabilities, no new privileges;
limits on memory (per process by RLIMIT_AS, for all together by a watchdog), processes, file size, CPU and wall time, printed bytes; an
environment of a dozen fixed variables. CUDA devices and driver libraries are passed through where the machine has them.

What they do not give: a wall against a kernel exploit, and equal speed on a busy machine. Standard library only.
"""

import functools
import json
import os
import selectors
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from eval.errors import UserError
from eval.trial.sandbox.job import GIB, HOST_MEMORY, WALL_CLOCK, Job, Limits, Outcome, SandboxError
from eval.trial.sandbox.machine import uid_of_run
from eval.trial.sandbox.stage import command_line, configuration, stage_files

MECHANISMS = ("bubblewrap", "unshare", "none")
TAIL_BYTES = 1 << 16

KILL_GRACE_S = (
    30.0  # beyond the supervisor's own deadline, for reading the output of a run that ended in time
)


def choose(wanted: str = "auto") -> str:
    """The first mechanism that works here; `none` only when asked for by name. Raises UserError saying what each one lacks."""
    if wanted == "none":
        return "none"
    if sys.platform != "linux":
        raise UserError(
            "sandbox: expected Linux (namespaces), found "
            + sys.platform
            + "; pass --no-sandbox to run the submission unprotected"
        )
    reasons = []
    for mechanism in MECHANISMS[:2] if wanted == "auto" else [wanted]:
        reason = unavailable(mechanism)
        if reason is None:
            return mechanism
        reasons.append(f"{mechanism}: {reason}")
    raise UserError(
        "sandbox: no mechanism works here ("
        + "; ".join(reasons)
        + "); install bubblewrap or allow user namespaces, or pass --no-sandbox to run "
        "the submission unprotected"
    )


@functools.cache
def unavailable(mechanism: str) -> str | None:
    """None when a trivial program runs under `mechanism`, else the reason."""
    if mechanism == "bubblewrap":
        if shutil.which("bwrap") is None:
            return "bwrap is not installed"
        if (
            "--size"
            not in subprocess.run(["bwrap", "--help"], capture_output=True, text=True).stdout
        ):
            return "this bwrap has no --size (needs 0.7)"
    job = Job(
        {},
        {},
        ["-I", "-S", "-c", "print('alive')"],
        limits=Limits(wall_seconds=20, memory_bytes=GIB),
    )
    try:
        outcome = run(job, mechanism)
    except SandboxError as error:
        return str(error)
    return None if outcome.ok and outcome.stdout.strip() == "alive" else outcome.why()


def run(job: Job, mechanism: str) -> Outcome:
    """Run `job`; returns when no process of it is left. Raises SandboxError when the sandbox could not be built."""
    stage = Path(tempfile.mkdtemp(prefix="referee-", dir=_fast_folder(job)))
    try:
        return _run(job, stage, mechanism)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _fast_folder(job: Job) -> str | None:
    """Memory for the stage where there is plenty: an audit writes a thousand small files, at a millisecond each on a disk."""
    needed = sum(
        len(c) if isinstance(c, bytes) else c.stat().st_size
        for c in (*job.code.values(), *job.inputs.values())
    )
    try:
        held = os.statvfs("/dev/shm")
    except OSError:
        return None
    return (
        "/dev/shm"
        if held.f_bavail * held.f_frsize > 4 * needed + GIB and os.access("/dev/shm", os.W_OK)
        else None
    )


def _run(job: Job, stage: Path, mechanism: str) -> Outcome:
    uid = uid_of_run() if mechanism != "none" else os.getuid()
    place = stage_files(job, stage, mechanism, uid)
    config = configuration(job, stage, place, mechanism, uid)
    result_read, result_write = os.pipe()
    info_read, info_write = os.pipe()
    config["info_fd"] = info_write
    config_path = stage / "config.json"
    config_path.write_text(json.dumps(config))
    config_fd = os.open(config_path, os.O_RDONLY)
    command = command_line(config, config_fd, result_write, info_write, mechanism)
    started = time.monotonic()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=[config_fd, result_write, info_write],
        env={"PATH": os.environ.get("PATH", os.defpath)},
        start_new_session=True,
    )
    for fd in (config_fd, result_write, info_write):
        os.close(fd)
    reins = _Reins(process, info_read, mechanism)
    printed = _Printed(process, job.limits.printed_bytes, reins)
    alarm = threading.Timer(job.limits.wall_seconds + KILL_GRACE_S, reins.kill, [WALL_CLOCK])
    alarm.daemon = True
    alarm.start()
    try:
        header, files = _receive(result_read)
        reins.wait()
    except BaseException:
        reins.kill("interrupted")
        reins.wait()
        raise
    finally:
        alarm.cancel()
        os.close(result_read)
    seconds = time.monotonic() - started
    printed.join()
    return _outcome(header, files, seconds, printed, reins, mechanism)


class _Reins:
    """Holds the sandbox's PID 1: killing it ends every process inside, and its end proves that they have ended."""

    def __init__(self, process: subprocess.Popen, info_read: int, mechanism: str):
        self.process, self.reason = process, None
        self.handle = None
        with os.fdopen(info_read) as handle:
            text = "" if mechanism == "none" else handle.read()
        if text:
            try:
                self.handle = os.pidfd_open(json.loads(text)["child-pid"])
            except ProcessLookupError:
                self.handle = None  # already over

    def kill(self, reason: str) -> None:
        self.reason = self.reason or reason
        try:
            if self.handle is not None:
                signal.pidfd_send_signal(
                    self.handle, signal.SIGKILL
                )  # its parent reaps it and ends by itself
            else:
                self.process.send_signal(
                    signal.SIGTERM
                )  # mechanism `none`: the supervisor ends everything itself
        except ProcessLookupError:
            return

    def wait(self) -> None:
        self.process.wait()
        if self.handle is not None:
            with selectors.DefaultSelector() as selector:
                selector.register(self.handle, selectors.EVENT_READ)
                if not selector.select(KILL_GRACE_S):
                    raise SandboxError("processes of the submission outlived the sandbox")
            os.close(self.handle)
            self.handle = None


class _Printed:
    """Reads stdout and stderr at any speed, keeps the ends, and ends a run that prints more than `limit` bytes."""

    def __init__(self, process: subprocess.Popen, limit: int, reins: _Reins):
        self.total, self.limit, self.reins = 0, limit, reins
        self.lock = threading.Lock()
        self.tails = {"stdout": b"", "stderr": b""}
        self.threads = [
            threading.Thread(target=self._read, args=(name, getattr(process, name)), daemon=True)
            for name in self.tails
        ]
        for thread in self.threads:
            thread.start()

    def _read(self, name: str, stream) -> None:
        with stream:
            while chunk := stream.read1(1 << 16):
                self.tails[name] = (self.tails[name] + chunk)[-TAIL_BYTES:]
                with self.lock:
                    self.total += len(chunk)
                    over = self.total > self.limit
                if over:
                    self.reins.kill(f"printed more than {self.limit:,} bytes")

    def join(self) -> None:
        for thread in self.threads:
            thread.join(KILL_GRACE_S)

    def text(self, name: str) -> str:
        return self.tails[name].decode(errors="replace")


def _receive(fd: int) -> tuple[dict, dict[str, bytes]]:
    """The supervisor's report and the collected files; both empty when it ended without one."""
    with os.fdopen(os.dup(fd), "rb") as pipe:
        length = pipe.read(8)
        text = pipe.read(struct.unpack("<Q", length)[0]) if len(length) == 8 else b""
        try:
            header = json.loads(text)
        except ValueError:
            return {}, {}
        if "error" in header:
            raise SandboxError(header["error"])
        files = {name: pipe.read(size) for name, size in header["files"]}
        if any(len(files[name]) != size for name, size in header["files"]):
            return {}, {}
        return header, files


def _outcome(
    header: dict,
    files: dict[str, bytes],
    seconds: float,
    printed: _Printed,
    reins: _Reins,
    mechanism: str,
) -> Outcome:
    if not header and reins.reason is None:
        raise SandboxError(
            f"the supervisor ended without a report: {printed.text('stderr').strip()[-500:] or 'no message'}"
        )
    outcome = Outcome(
        mechanism,
        header.get("returncode", -signal.SIGKILL),
        seconds,
        reins.reason or header.get("killed"),
    )
    outcome.cpu_seconds, outcome.peak_memory = (
        header.get("cpu_seconds"),
        header.get("peak_memory", 0),
    )
    if (
        outcome.killed == HOST_MEMORY
    ):  # it held less than it may, so what is missing is held by others
        held = f"{outcome.peak_memory / GIB:.1f} GiB"
        raise SandboxError(
            f"sandbox: expected memory for the submission's limit, found this machine out of it when the run held {held}; free some and repeat"
        )
    outcome.stdout, outcome.stderr, outcome.printed = (
        printed.text("stdout"),
        printed.text("stderr"),
        printed.total,
    )
    outcome.listing, outcome.problems = header.get("listing", []), list(header.get("problems", []))
    outcome.files = files
    for text, _ in header.get("events", []):
        kind, _, what = text.partition(" ")
        if kind in outcome.seen:
            outcome.seen[kind].append(what)
    if outcome.killed:
        outcome.problems.append(f"killed by the sandbox: {outcome.killed}")
    for name in header.get("left_behind", []):
        outcome.problems.append(f"left a process behind: {name[:120]}")
    return outcome
