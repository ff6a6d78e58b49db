"""Runs inside the sandbox, as its PID 1, and watches the submission there.

It builds the private root (mechanism `unshare`; bubblewrap has built it already), starts the
submission without privileges, watches it, ends whatever it left behind, and hands the result to
the referee through a pipe. It dies with the referee, and everything in the sandbox with it.

Standard library only, and started with `python -I -S`, so that no package of the environment can
change it. Usage: `python -I -S jail.py MODE CONFIG_FD RESULT_FD`, MODE in {build, supervise}.
CONFIG_FD holds one JSON object (see `configuration` in stage.py). RESULT_FD receives an 8-byte
little-endian length, that many bytes of JSON, then the collected files one after the other.
"""

import contextlib
import ctypes
import fnmatch
import json
import os
import resource
import select
import shutil
import signal
import socket
import stat
import struct
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # -I leaves it out
from root import build_root, enter_namespaces, raise_loopback

LIBC = ctypes.CDLL(None, use_errno=True)
# prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

POLL_MS = 100
# Some helpers end when they see their parent gone, as multiprocessing's resource tracker does.
LEAVING_S = 1.0
MAX_EVENTS = 20_000
MAX_EVENT_BYTES = 1_000
MAX_LISTED = 10_000  # files and folders beside the expected outputs
MAX_NAMED = 20  # processes left behind that the report names
LEAST_MEMORY_LEFT = 0.03  # of the machine's; below, the run is ended


def die_with_parent(number: signal.Signals, parent: int | None = None) -> None:
    """Ask the kernel for this signal when the parent ends, and end now if `parent` already has."""
    LIBC.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        os._exit(1)


# --- PID 1 (mechanism `unshare`) ---


def build(config: dict, result: int) -> int:
    """Fork a PID 1 into new namespaces and wait for it.

    The host's number of that process goes to the referee first. When the referee dies, this
    process dies, and with it PID 1 and everything inside."""
    enter_namespaces(config)
    die_with_parent(signal.SIGKILL, config["referee"])
    child = os.fork()
    if child:
        os.write(config["info_fd"], json.dumps({"child-pid": child}).encode())
        os.close(config["info_fd"])
        os.close(result)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    die_with_parent(signal.SIGKILL)  # its parent has no number in the new namespace
    os.close(config["info_fd"])
    build_root(config)
    raise_loopback()
    socket.sethostname("sandbox")
    return supervise(config, result)


# --- The submission's process ---


def become_submission(config: dict) -> None:
    """In the child: limits, no privileges, a clean environment, then exec. Never returns."""
    os.setsid()
    for name, value in config["rlimits"].items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (limit, limit))
    try:
        with open("/proc/self/oom_score_adj", "w") as handle:
            handle.write("1000")  # when memory ends, the submission goes first
    except OSError:
        pass
    os.umask(0o022)
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    if config["mechanism"] != "none":
        for capability in range(64):
            LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    if config["uid"] is not None:
        os.setgroups([])
        os.setresgid(config["uid"], config["uid"], config["uid"])
        os.setresuid(config["uid"], config["uid"], config["uid"])
    LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    os.closerange(3, 4096)
    if config["material"]:
        shutil.copytree(config["material"], config["tree"], symlinks=True, dirs_exist_ok=True)
    os.chdir(config["cwd"])
    os.execve(config["argv"][0], config["argv"], config["env"])


def processes(config: dict) -> list[int]:
    """Every process but this one that belongs to the run."""
    everyone = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    me = os.getpid()
    if config["mechanism"] != "none":
        return [pid for pid in everyone if pid != me]
    parents = {}
    for pid in everyone:
        try:
            with open(f"/proc/{pid}/stat", "rb") as handle:
                parents[pid] = int(handle.read().rpartition(b")")[2].split()[1])
        except (OSError, IndexError):
            continue
    found: set[int] = set()
    newest = {me}
    while newest:
        found |= newest
        newest = {pid for pid, parent in parents.items() if parent in found} - found
    return sorted(found - {me})


def memory_in_use(config: dict) -> int:
    """Bytes of private memory of all processes, and of what lies in the sandbox's tmpfs folders.

    The pages of shared libraries do not count."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = 0
    for pid in processes(config):
        try:
            with open(f"/proc/{pid}/statm") as handle:
                _, resident, shared = (int(word) for word in handle.read().split()[:3])
            total += (resident - shared) * page
        except (OSError, ValueError):
            continue
    for folder in config["tmpfs"]:
        held = os.statvfs(folder)
        total += (held.f_blocks - held.f_bfree) * held.f_frsize
    return total


def host_memory_left() -> float:
    """Fraction of the machine's memory still available."""
    with open("/proc/meminfo") as handle:
        values = dict(line.split(":", 1) for line in handle)
    return int(values["MemAvailable"].split()[0]) / int(values["MemTotal"].split()[0])


def describe(pid: int) -> str:
    """The beginning of a process's command line."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as handle:
            words = handle.read(200).replace(b"\0", b" ")
    except OSError:
        return "a process that ended by itself"
    return words.decode(errors="replace").strip() or "a process without a command line"


def end_everything(config: dict) -> None:
    """SIGKILL until nothing of the run is left.

    From PID 1 of a PID namespace `kill -1` reaches everything, and new forks lose the race."""
    for _ in range(200):
        if config["mechanism"] == "none":
            for pid in processes(config):
                try:
                    os.kill(pid, signal.SIGKILL)
                except OSError:
                    continue
        else:
            with contextlib.suppress(OSError):
                os.kill(-1, signal.SIGKILL)
        reap({})
        if not processes(config):
            return
        time.sleep(0.01)


def reap(done: dict) -> None:
    """Collect every ended child: done[pid] = (status, rusage)."""
    while True:
        try:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        done[pid] = (status, usage)


def open_event_pipe(config: dict) -> int:
    """The named pipe that the audit hook of the submission's interpreters writes to."""
    path = config["events"]
    os.mkfifo(path, 0o622)
    os.chmod(path, 0o622)
    return os.open(path, os.O_RDWR | os.O_NONBLOCK)


class Events:
    """Distinct lines from the hook, in order of first appearance.

    Their number is bounded, since the submission can write anything here."""

    def __init__(self) -> None:
        self.lines: dict[str, int] = {}
        self.rest = b""
        self.dropped = 0

    def drain(self, fd: int) -> None:
        while True:
            try:
                chunk = os.read(fd, 1 << 16)
            except BlockingIOError:
                return
            *lines, self.rest = (self.rest + chunk).split(b"\n")
            if len(self.rest) > MAX_EVENT_BYTES:
                self.rest = b""
                self.dropped += 1
            for line in lines:
                text = line[:MAX_EVENT_BYTES].decode(errors="replace")
                if text in self.lines or len(self.lines) < MAX_EVENTS:
                    self.lines[text] = self.lines.get(text, 0) + 1
                else:
                    self.dropped += 1


class Supervisor:
    """Watches one run until its first process ends or a limit is passed."""

    def __init__(self, config: dict):
        self.config = config
        self.fifo = open_event_pipe(config)
        self.events = Events()
        self.poller = select.poll()
        self.poller.register(self.fifo, select.POLLIN)
        self.ended: dict[int, tuple] = {}  # pid -> (status, rusage)
        self.peak_memory = 0
        self.stopped = False
        self.started = time.monotonic()

    def stop(self, *_: object) -> None:
        """Handler of SIGTERM: the referee wants the run to end."""
        self.stopped = True

    def running(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def start(self) -> int:
        """PID of the submission's first process."""
        self.started = time.monotonic()
        child = os.fork()
        if child:
            return child
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            become_submission(self.config)
        except BaseException as error:
            os.write(2, f"sandbox: the submission could not be started: {error}\n".encode())
        os._exit(127)

    def watch(self, child: int) -> str | None:
        """Wait for `child`. Returns why the run has to be killed, None when `child` has ended."""
        ended = os.pidfd_open(child)
        self.poller.register(ended, select.POLLIN)
        reason = None
        while child not in self.ended and reason is None:
            self._look()
            reason = self._passed_limit()
        self.poller.unregister(ended)
        return reason

    def let_helpers_leave(self) -> None:
        """Give the processes that are left a moment to end by themselves."""
        latest = self.running() + LEAVING_S
        while processes(self.config) and self.running() < latest:
            self._look()

    def end(self) -> None:
        """End every process of the run and take the last events."""
        end_everything(self.config)
        reap(self.ended)
        self.events.drain(self.fifo)

    def _look(self) -> None:
        self.poller.poll(POLL_MS)
        self.events.drain(self.fifo)
        reap(self.ended)

    def _passed_limit(self) -> str | None:
        used = memory_in_use(self.config)
        self.peak_memory = max(self.peak_memory, used)
        if self.stopped:
            return "by the referee"
        if used > self.config["memory_bytes"]:
            return "memory"
        if host_memory_left() < LEAST_MEMORY_LEFT:
            return "memory of the machine"
        if self.running() > self.config["wall_seconds"]:
            return "wall clock"
        return None


def supervise(config: dict, result: int) -> int:
    """Run the submission and send the report."""
    LIBC.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    supervisor = Supervisor(config)
    if config["mechanism"] == "none":
        # No PID namespace: adopt whatever is orphaned, and live long enough to end it.
        LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        signal.signal(signal.SIGTERM, supervisor.stop)
        die_with_parent(signal.SIGTERM, config["referee"])
    child = supervisor.start()
    killed = supervisor.watch(child)
    seconds = supervisor.running()
    left: list[str] = []
    if killed is None:
        supervisor.let_helpers_leave()
        left = [describe(pid) for pid in processes(config)[:MAX_NAMED]]
    supervisor.end()
    status, usage = supervisor.ended.get(child, (signal.SIGKILL, None))
    listing, problems = list_outputs(config["out"], len(config["collect"]) + MAX_LISTED)
    files = collectable(config["out"], config["collect"])
    gathered = gatherable(config)
    header = {
        "returncode": os.waitstatus_to_exitcode(status),
        "killed": killed,
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime if usage else None,
        "peak_memory": supervisor.peak_memory,
        "left_behind": left,
        "events": list(supervisor.events.lines.items()),
        "events_dropped": supervisor.events.dropped,
        "listing": listing,
        "problems": problems,
        "files": files,
        "gathered": gathered,
    }
    send(result, header, {config["out"]: files, config["cwd"]: gathered})
    return 0


def list_outputs(out: str, limit: int) -> tuple[list[str], list[str]]:
    """Names below the output folder, and what is no plain file there."""
    listing: list[str] = []
    problems: list[str] = []
    for folder, names, files in os.walk(out):
        for name in names + files:
            path = os.path.join(folder, name)
            mode = os.lstat(path).st_mode
            listing.append(os.path.relpath(path, out))
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                kind = "a symbolic link" if stat.S_ISLNK(mode) else "neither a file nor a folder"
                problems.append(f"output {os.path.relpath(path, out)} is {kind}")
            if len(listing) > limit:
                return listing, [*problems, f"more than {limit} output files"]
    return listing, problems


def collectable(out: str, names: list[str]) -> list[tuple[str, int]]:
    """(name, size in bytes) of the expected outputs that are plain files.

    Nothing of the run is alive, so they stay what they are."""
    found = []
    for name in names:
        try:
            held = os.lstat(os.path.join(out, name))
        except OSError:
            continue
        if stat.S_ISREG(held.st_mode):
            found.append((name, held.st_size))
    return found


def gatherable(config: dict) -> list[tuple[str, int]]:
    """(path from the working folder, size in bytes) of the wanted files that the run made.

    The largest are left out where all together are more than `kept_bytes`."""
    found = []
    for folder, _, names in os.walk(config["tree"] or ""):
        for name in names:
            path = os.path.join(folder, name)
            inside = os.path.relpath(path, config["tree"])
            wanted = any(fnmatch.fnmatch(name, pattern) for pattern in config["gather"])
            held = os.lstat(path)
            if wanted and inside not in config["given"] and stat.S_ISREG(held.st_mode):
                found.append((os.path.relpath(path, config["cwd"]), held.st_size))
    left = config["kept_bytes"]
    kept = []
    for name, size in sorted(found, key=lambda entry: entry[1])[:MAX_LISTED]:
        if size <= left:
            left -= size
            kept.append((name, size))
    return sorted(kept)


def send(result: int, header: dict, files: dict[str, list[tuple[str, int]]] | None = None) -> None:
    """Write the report, then the contents of `files`: folder -> (name, size) below it."""
    text = json.dumps(header).encode()
    write_all(result, struct.pack("<Q", len(text)) + text)
    for folder, entries in (files or {}).items():
        for name, size in entries:
            send_file(result, os.path.join(folder, name), size)


def send_file(result: int, path: str, size: int) -> None:
    """Write the first `size` bytes of a file. Raises OSError where it has fewer."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    left = size
    while left:
        chunk = os.read(fd, min(left, 1 << 20))
        if not chunk:
            raise OSError("an output file shrank while it was read")
        write_all(result, chunk)
        left -= len(chunk)
    os.close(fd)


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def main() -> int:
    mode = sys.argv[1]
    result = int(sys.argv[3])
    with os.fdopen(int(sys.argv[2])) as handle:
        config = json.load(handle)
    try:
        return build(config, result) if mode == "build" else supervise(config, result)
    except OSError as error:
        send(result, {"error": str(error)})
        return 1


if __name__ == "__main__":
    sys.exit(main())
