"""Runs inside the sandbox, as its PID 1: builds the private root (mechanism `unshare`; bubblewrap has built it already), then starts
the submission without privileges, watches it, ends whatever it left behind and hands the result to the referee through a pipe.

Standard library only, and started with `python -I -S`, so that no package of the environment can change it. Usage:
`python -I -S jail.py MODE CONFIG_FD RESULT_FD`, MODE in {build, supervise}. CONFIG_FD holds one JSON object (see sandbox.py, `_config`).
RESULT_FD receives an 8-byte little-endian length, that many bytes of JSON, then the collected files one after the other.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import resource
import select
import signal
import socket
import stat
import struct
import sys
import time

LIBC = ctypes.CDLL(None, use_errno=True)
# sched.h and mount.h
CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND = 1, 2, 4, 8, 32, 4096
MS_REC, MS_PRIVATE, MNT_DETACH = 16384, 1 << 18, 2
# statvfs flag -> mount flag: inside a user namespace, a remount must repeat the flags that the host has locked (mount(2))
LOCKED = {
    os.ST_NOSUID: MS_NOSUID,
    os.ST_NODEV: MS_NODEV,
    os.ST_NOEXEC: MS_NOEXEC,
    os.ST_NOATIME: 1024,
    os.ST_NODIRATIME: 2048,
    4096: 1 << 21,
}
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = (
    1,
    4,
    24,
    36,
    38,
)
POLL_MS = 100
LEAVING_S = 1.0  # for helpers that end when they see their parent gone, as multiprocessing's resource tracker
MAX_EVENTS, MAX_EVENT_BYTES = 20_000, 1_000
MAX_LISTED = 10_000  # files and folders beside the expected outputs


def check(code: int, what: str) -> None:
    if code != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(
    source: str | None, target: str, kind: str | None, flags: int, data: str | None = None
) -> None:
    args = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    check(
        LIBC.mount(*args, ctypes.c_ulong(flags), None if data is None else data.encode()),
        f"mount {source} on {target}",
    )


# --- Building the root (mechanism `unshare`) ---


def enter_namespaces(config: dict) -> None:
    """New mount, PID, network, IPC and host-name namespaces; under an ordinary user a user namespace owns them."""
    flags = (
        CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP
    )
    uid, gid = os.getuid(), os.getgid()
    if not config["privileged"]:
        flags |= CLONE_NEWUSER
    check(LIBC.unshare(flags), "unshare")
    if not config["privileged"]:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{uid} {uid} 1"),
            ("gid_map", f"{gid} {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as handle:
                handle.write(text)


def build_root(config: dict) -> None:
    """Mount everything under a tmpfs, make that the root, forget the host's root. Outside paths then do not exist."""
    root = config["root"]
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=16m,mode=755")
    for kind, source, target, size in config["mounts"]:
        place = root + target
        os.makedirs(os.path.dirname(place), exist_ok=True)
        if kind == "symlink":
            os.symlink(source, place)
        elif kind == "tmpfs":
            os.makedirs(place, exist_ok=True)
            mount("tmpfs", place, "tmpfs", MS_NOSUID | MS_NODEV, f"size={size},mode=1777")
        elif kind == "readonly":
            mount(None, place, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
        elif kind == "proc":
            os.makedirs(place, exist_ok=True)
            mount("proc", place, "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
        else:
            bind(source, place, device=kind == "device")
    mount(None, root, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
    os.chdir(root)
    check(LIBC.pivot_root(b".", b"."), "pivot_root")
    check(LIBC.umount2(b".", MNT_DETACH), "umount of the host's root")
    os.chdir("/")


def bind(source: str, place: str, device: bool) -> None:
    if os.path.isdir(source):
        os.makedirs(place, exist_ok=True)
    elif not os.path.exists(place):
        os.close(os.open(place, os.O_CREAT | os.O_WRONLY, 0o644))
    mount(source, place, None, MS_BIND | MS_REC)
    if device:
        return
    with open("/proc/self/mountinfo") as handle:
        points = [line.split()[4].encode().decode("unicode_escape") for line in handle]
    for point in points:
        if point == place or point.startswith(place + "/"):
            held = sum(flag for seen, flag in LOCKED.items() if os.statvfs(point).f_flag & seen)
            mount(None, point, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | held)


def raise_loopback() -> None:
    """torchrun's ranks meet on 127.0.0.1; a new network namespace starts with `lo` down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(sock, 0x8913, request))[1]  # SIOCGIFFLAGS
        fcntl.ioctl(sock, 0x8914, struct.pack("16sH14x", b"lo", flags | 1))  # SIOCSIFFLAGS, IFF_UP


def build(config: dict, result: int) -> int:
    """Fork a PID 1 into new namespaces and wait for it; the host's number of that process goes to the referee first."""
    enter_namespaces(config)
    child = os.fork()
    if child:
        os.write(config["info_fd"], json.dumps({"child-pid": child}).encode())
        os.close(config["info_fd"])
        os.close(result)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
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
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
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
    found, grown = {me}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        found |= more
        grown = bool(more)
    return sorted(found - {me})


def memory_in_use(config: dict) -> int:
    """Bytes of private memory of all processes plus what lies in the sandbox's tmpfs folders; shared library pages count for nobody."""
    page, total = os.sysconf("SC_PAGE_SIZE"), 0
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
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as handle:
            return (
                handle.read(200).replace(b"\0", b" ").decode(errors="replace").strip()
                or "a process without a command line"
            )
    except OSError:
        return "a process that ended by itself"


def end_everything(config: dict) -> None:
    """SIGKILL until nothing of the run is left. From PID 1 of a PID namespace `kill -1` reaches everything and new forks lose the race."""
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


def open_event_pipe(config: dict) -> int | None:
    """The named pipe that the audit hook of the submission's interpreters writes to."""
    path = config["events"]
    os.mkfifo(path, 0o622)
    os.chmod(path, 0o622)
    return os.open(path, os.O_RDWR | os.O_NONBLOCK)


class Events:
    """Distinct lines from the hook, in order of first appearance; bounded, since the submission can write anything here."""

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
                self.rest, self.dropped = b"", self.dropped + 1
            for line in lines:
                text = line[:MAX_EVENT_BYTES].decode(errors="replace")
                if text in self.lines or len(self.lines) < MAX_EVENTS:
                    self.lines[text] = self.lines.get(text, 0) + 1
                else:
                    self.dropped += 1


def supervise(config: dict, result: int) -> int:
    LIBC.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    stop = []
    if (
        config["mechanism"] == "none"
    ):  # no PID namespace: adopt whatever is orphaned, and live long enough to end it
        LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
    fifo, events = open_event_pipe(config), Events()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            become_submission(config)
        except BaseException as error:
            os.write(2, f"sandbox: the submission could not be started: {error}\n".encode())
        os._exit(127)
    killed, peak, done = None, 0, {}
    poller = select.poll()
    poller.register(fifo, select.POLLIN)
    ended = os.pidfd_open(child)
    poller.register(ended, select.POLLIN)
    while child not in done and killed is None:
        poller.poll(POLL_MS)
        events.drain(fifo)
        reap(done)
        used = memory_in_use(config)
        peak = max(peak, used)
        if stop:
            killed = "by the referee"
        elif used > config["memory_bytes"]:
            killed = "memory"
        elif host_memory_left() < 0.03:
            killed = "memory of the machine"
        elif time.monotonic() - started > config["wall_seconds"]:
            killed = "wall clock"
    seconds = time.monotonic() - started
    poller.unregister(ended)
    while not killed and processes(config) and time.monotonic() - started < seconds + LEAVING_S:
        poller.poll(POLL_MS)
        events.drain(fifo)
        reap(done)
    left = [] if killed else [describe(pid) for pid in processes(config)[:20]]
    end_everything(config)
    reap(done)
    events.drain(fifo)
    status, usage = done.get(child, (signal.SIGKILL, None))
    listing, problems = list_outputs(config["out"], len(config["collect"]) + MAX_LISTED)
    files = collectable(config["out"], config["collect"])
    header = {
        "returncode": os.waitstatus_to_exitcode(status),
        "killed": killed,
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime if usage else None,
        "peak_memory": peak,
        "left_behind": left,
        "events": list(events.lines.items()),
        "events_dropped": events.dropped,
        "listing": listing,
        "problems": problems,
        "files": files,
    }
    send(result, header, config["out"], files)
    return 0


def list_outputs(out: str, limit: int) -> tuple[list[str], list[str]]:
    """Names below the output folder, and what is no plain file there."""
    listing, problems = [], []
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
    """(name, size) of the expected outputs that are plain files. Nothing of the run is alive, so they stay what they are."""
    found = []
    for name in names:
        try:
            held = os.lstat(os.path.join(out, name))
        except OSError:
            continue
        if stat.S_ISREG(held.st_mode):
            found.append((name, held.st_size))
    return found


def send(
    result: int, header: dict, out: str = "", files: list[tuple[str, int]] | None = None
) -> None:
    text = json.dumps(header).encode()
    write_all(result, struct.pack("<Q", len(text)) + text)
    for name, size in files or []:
        fd = os.open(os.path.join(out, name), os.O_RDONLY | os.O_NOFOLLOW)
        while size:
            chunk = os.read(fd, min(size, 1 << 20))
            if not chunk:
                raise OSError("an output file shrank while it was read")
            write_all(result, chunk)
            size -= len(chunk)
        os.close(fd)


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def main() -> int:
    mode, config_fd, result = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with os.fdopen(config_fd) as handle:
        config = json.load(handle)
    try:
        return build(config, result) if mode == "build" else supervise(config, result)
    except OSError as error:
        send(result, {"error": str(error)})
        return 1


if __name__ == "__main__":
    sys.exit(main())
