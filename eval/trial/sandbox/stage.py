"""The folders, mounts and command line of one sandboxed run. Standard library only."""

import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from eval.errors import UserError
from eval.trial.sandbox.interpreter import Interpreter, interpreter
from eval.trial.sandbox.job import GIB, Job, Limits, Tree
from eval.trial.sandbox.machine import (
    NOBODY,
    counts_processes_per_namespace,
    cuda_devices,
    privileged_here,
    processes_of,
)

INSIDE = Path(__file__).resolve().parent / "inside"
REFEREE_FILES = ("jail.py", "root.py")
# On the submission's PYTHONPATH lies this folder alone, with the witness that Python loads.
WITNESS = "witness"
PROGRAMS = "programs"
# A tree is laid out here before the run copies it to where it may write.
MATERIAL = "/material"
WORKSPACE = "/workspace"
TREE = f"{WORKSPACE}/tree"
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")

# Shared libraries and, for compilers that torch starts, programs and headers. No /usr/share: it
# holds text.
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

ETC = ("hosts", "passwd", "group", "nsswitch.conf")  # the sandbox's own

DESCRIPTORS = {
    "/dev/fd": "/proc/self/fd",
    "/dev/stdin": "/proc/self/fd/0",
    "/dev/stdout": "/proc/self/fd/1",
    "/dev/stderr": "/proc/self/fd/2",
}

BUBBLEWRAP = (
    "bwrap",
    "--unshare-net",
    "--unshare-pid",
    "--unshare-ipc",
    "--unshare-uts",
    "--unshare-cgroup-try",
    "--die-with-parent",
    "--new-session",
    "--as-pid-1",
    "--hostname",
    "sandbox",
)

BUBBLEWRAP_CAPABILITIES = (
    "SETUID",
    "SETGID",
    "SETPCAP",
    "KILL",
    "DAC_OVERRIDE",
    "SYS_RESOURCE",
)

CUDA_LIBRARIES = ("/usr/local/nvidia", "/usr/local/cuda", "/etc/nvidia")

CUDA_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES",
    "LD_LIBRARY_PATH",
)

PASSED_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")

PLACES = ("code", "in", "out", "tmp", "referee", "channel", "tree")

# What Python itself looks for in a folder of packages.
ALWAYS_SHOWN = ("__pycache__/", "pip/", "_distutils_hack/", "sitecustomize", "usercustomize")


def stage_files(job: Job, stage: Path, mechanism: str, uid: int) -> dict[str, str]:
    """Copy code and inputs below `stage`.

    Returns the folders under which the submission will see them, by the names of PLACES."""
    _copy_files(stage / "code", job.code)
    _copy_files(stage / "in", job.inputs)
    _write_etc(stage / "etc", uid)
    (stage / "root").mkdir()
    if mechanism == "none":
        for name in ("out", "tmp", "channel"):
            (stage / name).mkdir()
        place = {name: str(stage / name) for name in PLACES}
    else:
        place = {name: f"/{name}" for name in PLACES} | {"tree": TREE}
    if job.tree is not None:
        # Without a private root the run writes where the referee laid the tree out.
        _lay_out_tree(job.tree, stage / ("tree" if mechanism == "none" else MATERIAL[1:]))
    _copy_files(stage / "referee", {name: INSIDE / name for name in REFEREE_FILES})
    _stage_programs(stage / "referee" / PROGRAMS, job.programs)
    witness = {
        "sitecustomize.py": INSIDE / "sitecustomize.py",
        "hook.json": _hook_facts(job, place),
    }
    _copy_files(stage / "referee" / WITNESS, witness)
    for name, folder in job.startup.items():
        modules = {path.name: path for path in folder.glob("*.py")}
        _copy_files(stage / "referee" / WITNESS / name, modules)
    return place


def _copy_files(folder: Path, files: Mapping[str, Path | bytes]) -> None:
    folder.mkdir()
    for name, content in files.items():
        target = folder / name
        if isinstance(content, bytes):
            target.write_bytes(content)
        else:
            shutil.copyfile(content, target)
        target.chmod(0o644)


def _lay_out_tree(tree: Tree, folder: Path) -> None:
    """Files, links and the working folder of `tree` below `folder`.

    Raises UserError where a path leads out of it."""
    working = _below(folder, tree.folder)
    working.mkdir(parents=True)
    for name, content in tree.files.items():
        target = _below(folder, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            target.write_bytes(content)
        else:
            shutil.copyfile(content, target)
    for name, leads_to in tree.links.items():
        link = _below(folder, name)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(_below(folder, leads_to), link.parent))


def _below(folder: Path, name: str) -> Path:
    """`folder`/`name`. Raises UserError where that is not below `folder`."""
    path = Path(os.path.normpath(folder / name))
    if not path.is_relative_to(folder):
        raise UserError(f"sandbox: expected a path below the run's tree, found {name}; rename it")
    return path


def _stage_programs(folder: Path, programs: Mapping[str, bytes]) -> None:
    _copy_files(folder, programs)
    for name in programs:
        (folder / name).chmod(0o755)


def _write_etc(etc: Path, uid: int) -> None:
    etc.mkdir()
    (etc / "hosts").write_text("127.0.0.1 localhost sandbox\n::1 localhost\n")
    (etc / "passwd").write_text(
        f"root:x:0:0::/:/bin/false\nscorer:x:{uid}:{uid}::/tmp:/bin/false\n"
    )
    (etc / "group").write_text(f"root:x:0:\nscorer:x:{uid}:\n")
    (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")


def _hook_facts(job: Job, place: dict[str, str]) -> bytes:
    """JSON of what the audit hook compares with; folders end in a slash.

    `hidden` are top-level names that are installed and not shown."""
    python = interpreter(job.python)
    prefixes = [p + "/" for p in python.prefixes]
    emptied = [p + "/" for p in job.emptied]
    trees = [place["tree"], WORKSPACE, *job.tree.aliases] if job.tree else []
    allowed = [*place.values(), *SYSTEM_ROOT, "/usr", "/etc", "/proc", "/sys", "/dev", *trees]
    writable = [place["out"], place["tmp"], "/dev", *trees]
    shown = [target + "/" for target in job.binds]
    for folder in emptied:
        shown += [folder + name for name in ALWAYS_SHOWN]
    facts = {
        "code": place["tree" if job.tree else "code"] + "/",
        "events": place["channel"] + "/events",
        "writable": [p + "/" for p in writable],
        "allowed": [p + "/" for p in allowed] + prefixes,
        "environment": [p for p in prefixes if p != "/usr/"] + [python.stdlib + "/"],
        "emptied": emptied,
        "shown": shown,
        "hidden": sorted(_hidden_packages(job)),
        "startup": list(job.startup),
    }
    return json.dumps(facts).encode()


def _hidden_packages(job: Job) -> set[str]:
    """From the folders of packages a name is imported as it stands there."""
    shown = {Path(target).name.split(".")[0] for target in job.binds}
    installed: set[str] = set()
    for folder in job.emptied:
        if folder.endswith("-packages"):
            installed |= {name.split(".")[0] for name in os.listdir(folder)}
    return installed - shown


def configuration(job: Job, stage: Path, place: dict[str, str], mechanism: str, uid: int) -> dict:
    """What inside/jail.py needs; mounts are (kind, source, target, size) in order."""
    limits = job.limits.fitted()
    isolated = mechanism != "none"
    privileged = privileged_here()
    gpu = cuda_devices() if job.gpu else []
    tree = job.tree
    return {
        "mechanism": mechanism,
        "referee": os.getpid(),
        "privileged": privileged,
        "root": str(stage / "root"),
        "mounts": _mounts(job, stage, limits, gpu) if isolated else [],
        "rlimits": _rlimits(limits, isolated, uid, bool(gpu)),
        "memory_bytes": limits.memory_bytes,
        "wall_seconds": limits.wall_seconds,
        "uid": uid if isolated and privileged else None,
        "tmpfs": _private_folders(job) if isolated else [],
        "events": place["channel"] + "/events",
        "out": place["out"],
        "material": MATERIAL if isolated and tree else None,
        "tree": place["tree"] if tree else None,
        "given": [os.path.normpath(name) for name in tree.files] if tree else [],
        "gather": list(tree.gather) if tree else [],
        "kept_bytes": limits.kept_bytes,
        "cwd": os.path.join(place["tree"], tree.folder) if tree else place["code"],
        "collect": list(job.collect),
        "argv": [
            interpreter(job.python).executable,
            *(_in_place(word, place) for word in job.argv),
        ],
        "env": _environment(job, place, bool(gpu)),
    }


def _in_place(word: str, place: dict[str, str]) -> str:
    """`word` with the sandbox's folders for {code}, {in}, {out} and {tree}."""
    for name in ("code", "in", "out", "tree"):
        word = word.replace("{" + name + "}", place[name])
    return word


def _rlimits(limits: Limits, isolated: bool, uid: int, gpu: bool) -> dict[str, int]:
    """Limits of setrlimit(2), by name."""
    if not isolated:
        alone = False
    elif privileged_here():
        alone = uid > NOBODY
    else:
        alone = counts_processes_per_namespace()
    rlimits = {
        "RLIMIT_CORE": 0,
        "RLIMIT_FSIZE": limits.file_bytes,
        "RLIMIT_CPU": int(limits.wall_seconds * (os.cpu_count() or 1)) + 1,
        "RLIMIT_NPROC": limits.processes + (0 if alone else processes_of(uid)),
    }
    if not gpu:  # CUDA maps far more address space than it uses; the watchdog remains
        rlimits["RLIMIT_AS"] = limits.memory_bytes + 16 * GIB
    return rlimits


def _environment(job: Job, place: dict[str, str], gpu: bool) -> dict[str, str]:
    own_programs = f"{place['referee']}/{PROGRAMS}:" if job.programs else ""
    of_python = os.path.dirname(interpreter(job.python).executable)
    env = {
        "PATH": f"{own_programs}{of_python}:/usr/local/bin:/usr/bin:/bin",
        "HOME": place["tmp"],
        "TMPDIR": place["tmp"],
        "USER": "scorer",
        "LANG": "C.UTF-8",
        "PYTHONPATH": f"{place['referee']}/{WITNESS}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    passed = PASSED_VARIABLES + (CUDA_VARIABLES if gpu else ())
    env |= {name: os.environ[name] for name in passed if name in os.environ}
    if not job.gpu:
        env["CUDA_VISIBLE_DEVICES"] = ""  # without isolation the devices are still there
    for name, value in job.variables.items():
        if name not in ("PATH", "PYTHONPATH"):  # these lead to the witness and to the programs
            env[name] = _in_place(value, place)
    return env


def _private_folders(job: Job) -> list[str]:
    """Folders in memory that the run may write to; they count as its memory."""
    return ["/tmp", "/out", "/dev/shm", *([WORKSPACE] if job.tree else [])]


def _mounts(
    job: Job, stage: Path, limits: Limits, gpu: list[str]
) -> list[tuple[str, str, str, int]]:
    # Private memory first: an environment below /tmp is then bound on top of it instead of
    # vanishing under it.
    mounts = [("tmpfs", "tmpfs", path, limits.output_bytes) for path in ("/tmp", "/dev/shm")]
    for path in SYSTEM_ROOT:
        if os.path.islink(path):
            mounts.append(("symlink", os.readlink(path), path, 0))
        elif os.path.isdir(path):
            mounts.append(("bind", path, path, 0))
    python = interpreter(job.python)
    shown = _shown(python, bool(gpu))
    mounts += [("bind", path, path, 0) for path in shown if os.path.exists(path)]
    emptied = _emptied(job)
    mounts += [("tmpfs", "tmpfs", path, 1 << 16) for path in emptied]
    mounts += [("bind", str(source), target, 0) for target, source in job.binds.items()]
    mounts += [("readonly", "", path, 0) for path in emptied]
    mounts += [("bind", str(stage / "etc" / name), f"/etc/{name}", 0) for name in ETC]
    mounts.append(("proc", "proc", "/proc", 0))
    devices = [f"/dev/{name}" for name in DEVICES] + gpu
    mounts += [("device", path, path, 0) for path in devices]
    mounts += [("symlink", source, target, 0) for target, source in DESCRIPTORS.items()]
    mounts.append(("tmpfs", "tmpfs", "/out", limits.output_bytes))
    mounts.append(("tmpfs", "tmpfs", "/channel", 1 << 16))
    mounts += [("bind", str(stage / name), f"/{name}", 0) for name in ("code", "in", "referee")]
    if job.tree is not None:
        mounts += _tree_mounts(job.tree, stage, limits, shown)
    return mounts


def _tree_mounts(
    tree: Tree, stage: Path, limits: Limits, shown: list[str]
) -> list[tuple[str, str, str, int]]:
    """The tree's material, the memory that it is copied to, and its aliases.

    An alias gives way to a path of the environment that lies at its place or below it."""
    mounts = [
        ("bind", str(stage) + MATERIAL, MATERIAL, 0),
        ("tmpfs", "tmpfs", WORKSPACE, limits.output_bytes),
    ]
    for alias, target in tree.aliases.items():
        if not any(path == alias or path.startswith(alias + "/") for path in shown):
            mounts.append(("symlink", os.path.normpath(f"{TREE}/{target}"), alias, 0))
    return mounts


def _shown(python: Interpreter, gpu: bool) -> list[str]:
    """Paths of this machine that the sandbox shows, where they exist."""
    # The referee's own interpreter starts the run, whichever one it uses.
    prefixes = sorted({*interpreter().prefixes, *python.prefixes})
    beyond_system = [p for p in prefixes if p != "/usr" and not p.startswith(SYSTEM)]
    cuda = CUDA_LIBRARIES if gpu else ()
    return [*SYSTEM, *SYSTEM_FILES, *cuda, "/sys", *beyond_system]


def _emptied(job: Job) -> list[str]:
    """Folders that the sandbox shows without their content."""
    if "/usr" in interpreter(job.python).prefixes or not os.path.isdir("/usr/lib/python3"):
        return list(job.emptied)
    return [*job.emptied, "/usr/lib/python3"]


def command_line(
    config: dict, config_fd: int, result_fd: int, info_fd: int, mechanism: str
) -> list[str]:
    """The program that starts the run. bwrap and the jail write the number of PID 1 to `info_fd`,
    and the jail reports to `result_fd`."""
    base = [sys.executable, "-I", "-S", "-B"]
    tail = [str(config_fd), str(result_fd)]
    if mechanism == "unshare":
        return [*base, str(INSIDE / "jail.py"), "build", *tail]
    if mechanism == "none":
        return [*base, str(INSIDE / "jail.py"), "supervise", *tail]
    command = [*BUBBLEWRAP, "--info-fd", str(info_fd)]
    if config["privileged"]:
        for name in BUBBLEWRAP_CAPABILITIES:
            command += ["--cap-add", f"CAP_{name}"]
    else:
        command.append("--unshare-user")
    command += _bubblewrap_mounts(config["mounts"])
    return [*command, "--remount-ro", "/", "--", *base, "/referee/jail.py", "supervise", *tail]


def _bubblewrap_mounts(mounts: list[tuple[str, str, str, int]]) -> list[str]:
    flags = {"bind": "--ro-bind", "device": "--dev-bind", "symlink": "--symlink"}
    words: list[str] = []
    made = {"/"}
    for kind, source, target, size in mounts:
        # bwrap would make the parents of a private folder private.
        for parent in map(str, reversed(Path(target).parents)):
            if parent not in made:
                words += ["--perms", "0755", "--dir", parent]
                made.add(parent)
        made.add(target)
        if kind == "tmpfs":
            words += ["--perms", "1777", "--size", str(size), "--tmpfs", target]
        elif kind == "proc":
            words += ["--proc", target]
        elif kind == "readonly":
            words += ["--remount-ro", target]
        else:
            words += [flags[kind], source, target]
    return words
