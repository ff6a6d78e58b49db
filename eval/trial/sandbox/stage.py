"""The folders, mounts and command line of one sandboxed run. Standard library only."""

import json
import os
import shutil
import sys
import sysconfig
from pathlib import Path

from eval.trial.sandbox.job import GIB, Job, Limits
from eval.trial.sandbox.machine import (
    NOBODY,
    counts_processes_per_namespace,
    cuda_devices,
    privileged_here,
    processes_of,
)

INSIDE = Path(__file__).resolve().parent / "inside"
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

PASSED_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def stage_files(job: Job, stage: Path, mechanism: str, uid: int) -> dict[str, str]:
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


def configuration(job: Job, stage: Path, place: dict[str, str], mechanism: str, uid: int) -> dict:
    """What inside/jail.py needs; mounts are (kind, source, target, size) in order."""
    limits = job.limits.fitted()
    isolated, privileged = mechanism != "none", privileged_here()
    alone = isolated and (uid > NOBODY if privileged else counts_processes_per_namespace())
    gpu = cuda_devices()
    rlimits = {
        "RLIMIT_CORE": 0,
        "RLIMIT_FSIZE": limits.file_bytes,
        "RLIMIT_CPU": int(limits.wall_seconds * (os.cpu_count() or 1)) + 1,
        "RLIMIT_NPROC": limits.processes + (0 if alone else processes_of(uid)),
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


def command_line(
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
