"""Facts about this machine that the sandbox depends on. Standard library only."""

import functools
import os
import secrets
from pathlib import Path

NOBODY = 65534
CAP_SYS_ADMIN = 21  # linux/capability.h


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def privileged_here() -> bool:
    """Whether this process may build namespaces without a user namespace of its own."""
    return os.geteuid() == 0 and _has_capability(CAP_SYS_ADMIN)


def uid_of_run() -> int:
    """The user that the submission runs as.

    Root's processes escape RLIMIT_NPROC. Under root each run therefore gets a user of its own, so
    that no other process counts against its limit. An ordinary user stays what it is."""
    if not privileged_here():
        return os.getuid()
    mapped = 0
    with open("/proc/self/uid_map") as handle:
        for line in handle:
            inside, _, count = line.split()
            mapped = max(mapped, int(inside) + int(count))
    return (1 << 30) + secrets.randbelow(1 << 29) if mapped > 1 << 31 else NOBODY


@functools.cache
def cuda_devices() -> list[str]:
    """Device files of NVIDIA's driver, and the one that stands for it under WSL."""
    found = [*Path("/dev").glob("nvidia*"), *Path("/dev").glob("dxg")]
    return sorted(map(str, found))


def _has_capability(number: int) -> bool:
    with open("/proc/self/status") as handle:
        effective = next((line.split()[1] for line in handle if line.startswith("CapEff:")), "0")
    return bool(int(effective, 16) >> number & 1)


def counts_processes_per_namespace() -> bool:
    """Since Linux 5.14 a new user namespace starts its own count for RLIMIT_NPROC."""
    major, minor = map(int, os.uname().release.split(".")[:2])
    return (major, minor) >= (5, 14)


def processes_of(uid: int) -> int:
    """Processes and threads that already count against this user's limit."""
    total = 0
    for path in Path("/proc").glob("[0-9]*/task"):
        try:
            if path.stat().st_uid == uid:
                total += len(os.listdir(path))
        except OSError:
            continue
    return total
