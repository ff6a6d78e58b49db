"""Runs a submission where it can read its code, its inputs and the Python environment only.

Mechanisms, in this order:

* `bubblewrap` (bwrap >= 0.7);
* `unshare`: inside/root.py builds the same root with the kernel's own calls, as root or in a user
  namespace;
* `none`, only on request: it limits time, memory and output but hides nothing.

What the first two give: an empty root with read-only binds, so outside paths do not exist; no
network but its own loopback; private /tmp and /out in memory with a size; a PID namespace whose
end is the end of every process in it; no capabilities, no new privileges; limits on memory (per
process by RLIMIT_AS, for all together by a watchdog), processes, file size, CPU and wall time,
printed bytes; an environment of a dozen fixed variables. CUDA devices and driver libraries are
passed through where the machine has them.

With each of the three, the run ends when the referee does, however the referee ends.

What they do not give: a wall against a kernel exploit, and equal speed on a busy machine.
Standard library only.
"""

import collections
import contextlib
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
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

from eval.errors import UserError
from eval.trial.sandbox.job import GIB, HOST_MEMORY, WALL_CLOCK, Job, Limits, Outcome, SandboxError
from eval.trial.sandbox.machine import uid_of_run
from eval.trial.sandbox.stage import command_line, configuration, stage_files

ISOLATING = ("bubblewrap", "unshare")  # mechanisms that hide the rest of the machine

# Beyond the supervisor's own deadline, for reading the output of a run that ended in time.
KILL_GRACE_S = 30.0


def choose(wanted: str = "auto") -> str:
    """The first mechanism that works here; `none` only when asked for by name.

    Raises UserError that says what each one lacks."""
    if wanted == "none":
        return "none"
    if sys.platform != "linux":
        raise UserError(
            f"sandbox: expected Linux (namespaces), found {sys.platform}; "
            "pass --no-sandbox to run the submission unprotected"
        )
    reasons = []
    candidates = ISOLATING if wanted == "auto" else (wanted,)
    for mechanism in candidates:
        reason = unavailable(mechanism)
        if reason is None:
            return mechanism
        reasons.append(f"{mechanism}: {reason}")
    raise UserError(
        f"sandbox: no mechanism works here ({'; '.join(reasons)}); install bubblewrap "
        "or allow user namespaces, or pass --no-sandbox to run the submission unprotected"
    )


@functools.cache
def unavailable(mechanism: str) -> str | None:
    """None when a trivial program runs under `mechanism`, else the reason."""
    if mechanism == "bubblewrap":
        if shutil.which("bwrap") is None:
            return "bwrap is not installed"
        options = subprocess.run(["bwrap", "--help"], capture_output=True, text=True).stdout
        if "--size" not in options:
            return "this bwrap has no --size (needs 0.7)"
    limits = Limits(wall_seconds=20, memory_bytes=GIB)
    job = Job({}, {}, ["-I", "-S", "-c", "print('alive')"], limits=limits)
    try:
        outcome = run(job, mechanism)
    except SandboxError as error:
        return str(error)
    return None if outcome.ok and outcome.stdout.strip() == "alive" else outcome.why()


def run(job: Job, mechanism: str, team: "_Team | None" = None) -> Outcome:
    """Run `job`; returns when no process of it is left.

    Raises SandboxError when the sandbox could not be built. SIGTERM raises SystemExit meanwhile,
    so that the run is ended and its files are removed."""
    with _sigterm_exits():
        stage = Path(tempfile.mkdtemp(prefix="referee-", dir=_fast_folder(job)))
        try:
            return _run(job, stage, mechanism, team or _Team())
        finally:
            shutil.rmtree(stage, ignore_errors=True)


def run_side_by_side(jobs: Sequence[Job], mechanism: str) -> list[Outcome]:
    """Run all jobs at once; returns when no process of any is left.

    Raises what `run` raises, and what interrupts this process, when the others have been ended."""
    if len(jobs) == 1:
        return [run(jobs[0], mechanism)]
    team = _Team()
    with _sigterm_exits(), ThreadPoolExecutor(max(len(jobs), 1)) as pool:
        running = [pool.submit(run, job, mechanism, team) for job in jobs]
        try:
            wait(running, return_when=FIRST_EXCEPTION)
            failed = [one for one in running if one.done() and one.exception()]
            return [one.result() for one in failed or running]
        except BaseException:
            team.kill("ended with the others")
            raise


class _Team:
    """The runs that end together."""

    def __init__(self) -> None:
        self.members: list[_Reins] = []
        self.reason: str | None = None
        self.lock = threading.Lock()

    def join(self, reins: "_Reins") -> None:
        """Add a run; it is ended at once where the others have been."""
        with self.lock:
            self.members.append(reins)
            if self.reason is not None:
                reins.kill(self.reason)

    def kill(self, reason: str) -> None:
        with self.lock:
            self.reason = reason
            for reins in self.members:
                if not reins.over:
                    reins.kill(reason)


@contextlib.contextmanager
def _sigterm_exits() -> Iterator[None]:
    """Turn SIGTERM into SystemExit, where it would end the process without a word.

    Only a main thread can; elsewhere the run still dies with the process."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def leave(number: int, _: object) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _fast_folder(job: Job) -> str | None:
    """A folder in memory for the stage where there is plenty, None for the usual one.

    An audit writes a thousand small files, at a millisecond each on a disk."""
    needed = 0
    for content in (*job.code.values(), *job.inputs.values()):
        needed += len(content) if isinstance(content, bytes) else content.stat().st_size
    try:
        held = os.statvfs("/dev/shm")
    except OSError:
        return None
    plenty = held.f_bavail * held.f_frsize > 4 * needed + GIB
    return "/dev/shm" if plenty and os.access("/dev/shm", os.W_OK) else None


def _run(job: Job, stage: Path, mechanism: str, team: _Team) -> Outcome:
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
    team.join(reins)
    printed = _Printed(process, job.limits, reins)
    alarm = threading.Timer(job.limits.wall_seconds + KILL_GRACE_S, reins.kill, [WALL_CLOCK])
    alarm.daemon = True
    alarm.start()
    try:
        header, files, gathered = _receive(result_read)
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
    outcome = _outcome(header, files, seconds, printed, reins, mechanism)
    outcome.gathered = gathered
    return outcome


class _Reins:
    """Holds the sandbox's PID 1.

    Killing it ends every process inside, and its end proves that they have ended."""

    def __init__(self, process: subprocess.Popen, info_read: int, mechanism: str):
        self.process = process
        self.reason: str | None = None
        self.handle: int | None = None
        self.over = False
        with os.fdopen(info_read) as handle:
            text = "" if mechanism == "none" else handle.read()
        if text:
            try:
                self.handle = os.pidfd_open(json.loads(text)["child-pid"])
            except ProcessLookupError:
                self.handle = None  # already over

    def kill(self, reason: str) -> None:
        """End every process of the run. The first reason given counts."""
        self.reason = self.reason or reason
        try:
            if self.handle is not None:
                # The parent of PID 1 reaps it and ends by itself.
                signal.pidfd_send_signal(self.handle, signal.SIGKILL)
            else:
                # Mechanism `none`: the supervisor ends everything itself.
                self.process.send_signal(signal.SIGTERM)
        except ProcessLookupError:
            return

    def wait(self) -> None:
        """Return when no process of the run is left. Raises SandboxError if one stays."""
        self.process.wait()
        self.over = True
        if self.handle is not None:
            with selectors.DefaultSelector() as selector:
                selector.register(self.handle, selectors.EVENT_READ)
                if not selector.select(KILL_GRACE_S):
                    raise SandboxError("processes of the submission outlived the sandbox")
            os.close(self.handle)
            self.handle = None


class _Printed:
    """Reads stdout and stderr at any speed and keeps the last bytes of each.

    It ends a run that prints more than `limits.printed_bytes`."""

    def __init__(self, process: subprocess.Popen, limits: Limits, reins: _Reins):
        self.total = 0
        self.limit = limits.printed_bytes
        self.reins = reins
        self.lock = threading.Lock()
        self.tails = {name: _Tail(limits.kept_bytes) for name in ("stdout", "stderr")}
        self.threads = [
            threading.Thread(target=self._read, args=(name, getattr(process, name)), daemon=True)
            for name in self.tails
        ]
        for thread in self.threads:
            thread.start()

    def _read(self, name: str, stream) -> None:
        with stream:
            while chunk := stream.read1(1 << 16):
                self.tails[name].add(chunk)
                with self.lock:
                    self.total += len(chunk)
                    over = self.total > self.limit
                if over:
                    self.reins.kill(f"printed more than {self.limit:,} bytes")

    def join(self) -> None:
        for thread in self.threads:
            thread.join(KILL_GRACE_S)

    def text(self, name: str) -> str:
        return self.tails[name].content().decode(errors="replace")


class _Tail:
    """The last `kept` bytes of a stream."""

    def __init__(self, kept: int):
        self.kept = kept
        self.held = 0
        self.chunks: collections.deque[bytes] = collections.deque()

    def add(self, chunk: bytes) -> None:
        """Append, and forget chunks that the last `kept` bytes do without."""
        self.chunks.append(chunk)
        self.held += len(chunk)
        while self.held - len(self.chunks[0]) >= self.kept:
            self.held -= len(self.chunks.popleft())

    def content(self) -> bytes:
        return b"".join(self.chunks)[-self.kept :]


def _receive(fd: int) -> tuple[dict, dict[str, bytes], dict[str, bytes]]:
    """The supervisor's report, the collected files and those gathered from the tree.

    All are empty when it ended without a report."""
    with os.fdopen(os.dup(fd), "rb") as pipe:
        length = pipe.read(8)
        text = pipe.read(struct.unpack("<Q", length)[0]) if len(length) == 8 else b""
        try:
            header = json.loads(text)
        except ValueError:
            return {}, {}, {}
        if "error" in header:
            raise SandboxError(header["error"])
        sent = []
        for entries in (header["files"], header["gathered"]):
            files = {name: pipe.read(size) for name, size in entries}
            if any(len(files[name]) != size for name, size in entries):
                return {}, {}, {}
            sent.append(files)
        return header, *sent


def _outcome(
    header: dict,
    files: dict[str, bytes],
    seconds: float,
    printed: _Printed,
    reins: _Reins,
    mechanism: str,
) -> Outcome:
    if not header and reins.reason is None:
        said = printed.text("stderr").strip()[-500:] or "no message"
        raise SandboxError(f"the supervisor ended without a report: {said}")
    outcome = Outcome(
        mechanism,
        returncode=header.get("returncode", -signal.SIGKILL),
        seconds=seconds,
        killed=reins.reason or header.get("killed"),
        cpu_seconds=header.get("cpu_seconds"),
        peak_memory=header.get("peak_memory", 0),
        stdout=printed.text("stdout"),
        stderr=printed.text("stderr"),
        printed=printed.total,
        files=files,
        listing=header.get("listing", []),
        problems=list(header.get("problems", [])),
    )
    if outcome.killed == HOST_MEMORY:
        # It held less than it may, so others hold what is missing.
        held = f"{outcome.peak_memory / GIB:.1f} GiB"
        raise SandboxError(
            "sandbox: expected memory for the submission's limit, "
            f"found this machine out of it when the run held {held}; free some and repeat"
        )
    for text, _ in header.get("events", []):
        kind, _, what = text.partition(" ")
        if kind in outcome.seen:
            outcome.seen[kind].append(what)
    if outcome.killed:
        outcome.problems.append(f"killed by the sandbox: {outcome.killed}")
    for name in header.get("left_behind", []):
        outcome.problems.append(f"left a process behind: {name[:120]}")
    return outcome
