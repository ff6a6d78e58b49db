"""Runs a submission where it can read its code, its inputs and the Python environment, and nothing else.

Mechanisms, in this order: `bubblewrap` (bwrap >= 0.7); `unshare` (the same root built by inside/jail.py with the kernel's own calls,
as root or in a user namespace); `none`, only on request, which limits time, memory and output but hides nothing.

What the first two give: an empty root with read-only binds, so outside paths do not exist; no network but its own loopback; private
/tmp and /out in memory with a size; a PID namespace whose end is the end of every process in it; no capabilities, no new privileges;
limits on memory (per process by RLIMIT_AS, for all together by a watchdog), processes, file size, CPU and wall time, printed bytes; an
environment of a dozen fixed variables. CUDA devices and driver libraries are passed through where the machine has them.

What they do not give: a wall against a kernel exploit, and equal speed on a busy machine. Standard library only."""

import functools
import json
import os
import secrets
import selectors
import shutil
import signal
import struct
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eval.errors import UserError

INSIDE = Path(__file__).resolve().parent / "inside"
MECHANISMS = ("bubblewrap", "unshare", "none")
NOBODY = 65534
GIB = 1 << 30
TAIL_BYTES = 1 << 16
KILL_GRACE_S = (
    30.0  # beyond the supervisor's own deadline, for reading the output of a run that ended in time
)
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
# Shared libraries and, for compilers that torch starts, programs and headers. No /usr/share: it holds text.
SYSTEM = (
    "/usr/bin",
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/usr/libexec",
    "/usr/include",
    "/usr/sbin",
)
SYSTEM_ROOT = ("/bin", "/sbin", "/lib", "/lib32", "/lib64")
SYSTEM_FILES = (
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/alternatives",
    "/etc/localtime",
)
CUDA_LIBRARIES = ("/usr/local/nvidia", "/usr/local/cuda", "/etc/nvidia")
CUDA_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES",
    "LD_LIBRARY_PATH",
)
# Kinds of events that the audit hook reports: paths outside the allowed set, paths below /tmp that the run never made, writes outside /out
# and /tmp, text of the environment read other than by importing it, addresses beyond loopback, and programs started.
EVENT_KINDS = ("outside", "absent", "write", "environment", "network", "program")
WALL_CLOCK, HOST_MEMORY = (
    "wall clock",
    "memory of the machine",
)  # reasons for which a run is killed, as inside/jail.py names them
PASSED_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Limits:
    """Bounds of one run: seconds, bytes, counts. `memory_bytes` bounds all processes and the memory file systems together."""

    wall_seconds: float = 600.0
    memory_bytes: int = 16 * GIB
    output_bytes: int = 2 * GIB  # /out, and /tmp, each
    file_bytes: int = 2 * GIB
    printed_bytes: int = 64 << 20
    processes: int = 1024

    def fitted(self) -> "Limits":
        """The same with memory no more than 90 % of this machine's."""
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Limits(
            **{**self.__dict__, "memory_bytes": min(self.memory_bytes, int(0.9 * machine))}
        )


@dataclass(frozen=True)
class Job:
    """One run. `code` and `inputs` map file names to contents: paths are copied, so the submission sees a snapshot.

    `argv` follows the interpreter; the words {code}, {in} and {out} become the folders of the sandbox. `collect` names expected outputs.
    `emptied` folders of the environment are shown without content, but for what `binds` (target -> source on this machine) puts there."""

    code: Mapping[str, Path | bytes]
    inputs: Mapping[str, Path | bytes]
    argv: Sequence[str]
    collect: Sequence[str] = ()
    limits: Limits = field(default_factory=Limits)
    binds: Mapping[str, Path] = field(default_factory=dict)
    emptied: Sequence[str] = ()


@dataclass
class Outcome:
    """What happened. `seconds` by the referee's clock, from start to the end of the last process. `problems` lists what broke a rule of the
    sandbox or would have; `seen` is what the audit hook was told, by kind and without repetition."""

    mechanism: str
    returncode: int
    seconds: float
    killed: str | None = None
    cpu_seconds: float | None = None
    peak_memory: int = 0
    stdout: str = ""
    stderr: str = ""
    printed: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    listing: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seen: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in EVENT_KINDS})

    @property
    def ok(self) -> bool:
        return self.returncode == 0 and self.killed is None

    def why(self) -> str:
        """One line on a run that did not end well."""
        if self.killed:
            return f"killed: {self.killed}"
        last = [line for line in self.stderr.splitlines() if line.strip()]
        ended = (
            f"exit code {self.returncode}"
            if self.returncode >= 0
            else f"signal {signal.Signals(-self.returncode).name}"
        )
        return f"{ended}{': ' + last[-1].strip()[:300] if last else ''}"


# --- Choosing a mechanism ---


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


class SandboxError(UserError):
    """The sandbox itself failed, not the submission."""


# --- Running ---


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
    uid = _uid_of_run() if mechanism != "none" else os.getuid()
    place = _stage(job, stage, mechanism, uid)
    config = _config(job, stage, place, mechanism, uid)
    result_read, result_write = os.pipe()
    info_read, info_write = os.pipe()
    config["info_fd"] = info_write
    config_path = stage / "config.json"
    config_path.write_text(json.dumps(config))
    config_fd = os.open(config_path, os.O_RDONLY)
    command = _command(config, config_fd, result_write, info_write, mechanism)
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


# --- Stage and configuration ---


def _stage(job: Job, stage: Path, mechanism: str, uid: int) -> dict[str, str]:
    """Copy code and inputs below `stage`; returns the folders under which the submission will see them."""
    for name, files in (("code", job.code), ("in", job.inputs)):
        folder = stage / name
        folder.mkdir()
        for file, content in files.items():
            if isinstance(content, bytes):
                (folder / file).write_bytes(content)
            else:
                shutil.copyfile(content, folder / file)
            (folder / file).chmod(0o644)
    referee = stage / "referee"
    referee.mkdir()
    for file in ("sitecustomize.py", "jail.py"):
        shutil.copyfile(INSIDE / file, referee / file)
    etc = stage / "etc"
    etc.mkdir()
    (etc / "hosts").write_text("127.0.0.1 localhost sandbox\n::1 localhost\n")
    (etc / "passwd").write_text(
        f"root:x:0:0::/:/bin/false\nscorer:x:{uid}:{uid}::/tmp:/bin/false\n"
    )
    (etc / "group").write_text(f"root:x:0:\nscorer:x:{uid}:\n")
    (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")
    (stage / "root").mkdir()
    if mechanism == "none":
        for name in ("out", "tmp", "channel"):
            (stage / name).mkdir()
        place = {
            name: str(stage / name) for name in ("code", "in", "out", "tmp", "referee", "channel")
        }
    else:
        place = {
            "code": "/code",
            "in": "/in",
            "out": "/out",
            "tmp": "/tmp",
            "referee": "/referee",
            "channel": "/channel",
        }
    (referee / "hook.json").write_text(json.dumps(_hook_facts(job, place)))
    for path in referee.iterdir():
        path.chmod(0o644)
    return place


def _hook_facts(job: Job, place: dict[str, str]) -> dict[str, object]:
    """What the audit hook compares with; folders end in a slash. `hidden` are top-level names that are installed and not shown."""
    prefixes = [p + "/" for p in environment_prefixes()]
    emptied = [p + "/" for p in job.emptied]
    shown = {Path(target).name.split(".")[0] for target in job.binds}
    packages = [
        folder for folder in job.emptied if folder.endswith("-packages")
    ]  # from where a name is imported as it stands
    hidden = {name.split(".")[0] for folder in packages for name in os.listdir(folder)} - shown
    return {
        "code": place["code"] + "/",
        "events": place["channel"] + "/events",
        "writable": [place["out"] + "/", place["tmp"] + "/", "/dev/"],
        "allowed": [
            p + "/"
            for p in (*place.values(), *SYSTEM_ROOT, "/usr", "/etc", "/proc", "/sys", "/dev")
        ]
        + prefixes,
        "environment": [p for p in prefixes if p != "/usr/"] + [_stdlib() + "/"],
        "emptied": emptied,
        "shown": [target + "/" for target in job.binds]
        + [
            p + n
            for p in emptied
            for n in ("__pycache__/", "pip/", "_distutils_hack/", "sitecustomize", "usercustomize")
        ],
        "hidden": sorted(hidden),
    }


def environment_prefixes() -> list[str]:
    """Folders that make up the running Python environment."""
    return sorted(
        {
            os.path.realpath(p)
            for p in (sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix)
        }
        | {sys.prefix}
    )


def _stdlib() -> str:
    return sysconfig.get_paths()["stdlib"]


def _privileged() -> bool:
    return os.geteuid() == 0 and _has_capability(21)  # CAP_SYS_ADMIN


def _uid_of_run() -> int:
    """Root's processes escape RLIMIT_NPROC, so under root each run gets a user of its own, whose processes nobody else's count with. An
    ordinary user stays what it is."""
    if not _privileged():
        return os.getuid()
    with open("/proc/self/uid_map") as handle:
        mapped = max(
            int(inside) + int(count) for inside, _, count in (line.split() for line in handle)
        )
    return (1 << 30) + secrets.randbelow(1 << 29) if mapped > 1 << 31 else NOBODY


def _config(job: Job, stage: Path, place: dict[str, str], mechanism: str, uid: int) -> dict:
    """What inside/jail.py needs; mounts are (kind, source, target, size) in order."""
    limits = job.limits.fitted()
    isolated, privileged = mechanism != "none", _privileged()
    alone = isolated and (uid > NOBODY if privileged else _counts_processes_per_namespace())
    gpu = cuda_devices()
    rlimits = {
        "RLIMIT_CORE": 0,
        "RLIMIT_FSIZE": limits.file_bytes,
        "RLIMIT_CPU": int(limits.wall_seconds * (os.cpu_count() or 1)) + 1,
        "RLIMIT_NPROC": limits.processes + (0 if alone else _processes_of(uid)),
    }
    if not gpu:
        rlimits["RLIMIT_AS"] = (
            limits.memory_bytes + 16 * GIB
        )  # CUDA maps far more address space than it uses; the watchdog remains
    words = {"{code}": place["code"], "{in}": place["in"], "{out}": place["out"]}
    argv = [sys.executable]
    for word in job.argv:
        for name, folder in words.items():
            word = word.replace(name, folder)
        argv.append(word)
    return {
        "mechanism": mechanism,
        "privileged": privileged,
        "root": str(stage / "root"),
        "mounts": _mounts(job, stage, limits, gpu) if isolated else [],
        "rlimits": rlimits,
        "memory_bytes": limits.memory_bytes,
        "wall_seconds": limits.wall_seconds,
        "uid": uid if isolated and privileged else None,
        "tmpfs": ["/tmp", "/out", "/dev/shm"] if isolated else [],
        "events": place["channel"] + "/events",
        "out": place["out"],
        "cwd": place["code"],
        "collect": list(job.collect),
        "argv": argv,
        "env": _environment(place, bool(gpu)),
    }


def _environment(place: dict[str, str], gpu: bool) -> dict[str, str]:
    env = {
        "PATH": f"{os.path.dirname(sys.executable)}:/usr/local/bin:/usr/bin:/bin",
        "HOME": place["tmp"],
        "TMPDIR": place["tmp"],
        "USER": "scorer",
        "LANG": "C.UTF-8",
        "PYTHONPATH": place["referee"],
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    passed = PASSED_VARIABLES + (CUDA_VARIABLES if gpu else ())
    return env | {name: os.environ[name] for name in passed if name in os.environ}


def _mounts(
    job: Job, stage: Path, limits: Limits, gpu: list[str]
) -> list[tuple[str, str, str, int]]:
    # Private memory first: an environment below /tmp is then bound on top of it instead of vanishing under it.
    mounts = [("tmpfs", "tmpfs", path, limits.output_bytes) for path in ("/tmp", "/dev/shm")]
    for path in SYSTEM_ROOT:
        if os.path.islink(path):
            mounts.append(("symlink", os.readlink(path), path, 0))
        elif os.path.isdir(path):
            mounts.append(("bind", path, path, 0))
    prefixes = environment_prefixes()
    shown = [
        *SYSTEM,
        *SYSTEM_FILES,
        *(CUDA_LIBRARIES if gpu else ()),
        "/sys",
        *(p for p in prefixes if p != "/usr" and not p.startswith(SYSTEM)),
    ]
    emptied = [
        *job.emptied,
        *(
            []
            if "/usr" in prefixes or not os.path.isdir("/usr/lib/python3")
            else ["/usr/lib/python3"]
        ),
    ]
    mounts += [("bind", path, path, 0) for path in shown if os.path.exists(path)]
    mounts += [("tmpfs", "tmpfs", path, 1 << 16) for path in emptied]
    mounts += [("bind", str(source), target, 0) for target, source in job.binds.items()]
    mounts += [("readonly", "", path, 0) for path in emptied]
    mounts += [
        ("bind", str(stage / "etc" / name), f"/etc/{name}", 0)
        for name in ("hosts", "passwd", "group", "nsswitch.conf")
    ]
    mounts += [("proc", "proc", "/proc", 0)]
    mounts += [("device", f"/dev/{name}", f"/dev/{name}", 0) for name in DEVICES] + [
        ("device", path, path, 0) for path in gpu
    ]
    mounts += [
        ("symlink", f"/proc/self/fd{end}", f"/dev/{name}", 0)
        for name, end in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2"))
    ]
    mounts += [
        ("tmpfs", "tmpfs", "/out", limits.output_bytes),
        ("tmpfs", "tmpfs", "/channel", 1 << 16),
    ]
    mounts += [("bind", str(stage / name), f"/{name}", 0) for name in ("code", "in", "referee")]
    return mounts


def _command(
    config: dict, config_fd: int, result_fd: int, info_fd: int, mechanism: str
) -> list[str]:
    base = [sys.executable, "-I", "-S"]
    tail = [str(config_fd), str(result_fd)]
    if mechanism != "bubblewrap":
        return [
            *base,
            str(INSIDE / "jail.py"),
            "build" if mechanism == "unshare" else "supervise",
            *tail,
        ]
    command = [
        "bwrap",
        "--unshare-net",
        "--unshare-pid",
        "--unshare-ipc",
        "--unshare-uts",
        "--unshare-cgroup-try",
        "--die-with-parent",
    ]
    command += ["--new-session", "--as-pid-1", "--hostname", "sandbox", "--info-fd", str(info_fd)]
    if config["privileged"]:
        for name in ("SETUID", "SETGID", "SETPCAP", "KILL", "DAC_OVERRIDE", "SYS_RESOURCE"):
            command += ["--cap-add", f"CAP_{name}"]
    else:
        command += ["--unshare-user"]
    flags = {"bind": "--ro-bind", "device": "--dev-bind", "symlink": "--symlink"}
    made = {"/"}
    for kind, source, target, size in config["mounts"]:
        for parent in reversed(
            Path(target).parents
        ):  # bwrap would make the parents of a private folder private
            if str(parent) not in made:
                command += ["--perms", "0755", "--dir", str(parent)]
                made.add(str(parent))
        made.add(target)
        if kind == "tmpfs":
            command += ["--perms", "1777", "--size", str(size), "--tmpfs", target]
        elif kind in ("proc", "readonly"):
            command += ["--proc" if kind == "proc" else "--remount-ro", target]
        else:
            command += [flags[kind], source, target]
    return [*command, "--remount-ro", "/", "--", *base, "/referee/jail.py", "supervise", *tail]


# --- Facts about this machine ---


@functools.cache
def cuda_devices() -> list[str]:
    """Device files of NVIDIA's driver."""
    return sorted(str(path) for path in Path("/dev").glob("nvidia*"))


def _has_capability(number: int) -> bool:
    with open("/proc/self/status") as handle:
        effective = next((line.split()[1] for line in handle if line.startswith("CapEff:")), "0")
    return bool(int(effective, 16) >> number & 1)


def _counts_processes_per_namespace() -> bool:
    """Since Linux 5.14 a new user namespace starts its own count for RLIMIT_NPROC."""
    major, minor = (int(part) for part in os.uname().release.split(".")[:2])
    return (major, minor) >= (5, 14)


def _processes_of(uid: int) -> int:
    """Processes and threads that already count against this user's limit."""
    total = 0
    for path in Path("/proc").glob("[0-9]*/task"):
        try:
            if path.stat().st_uid == uid:
                total += len(os.listdir(path))
        except OSError:
            continue
    return total
