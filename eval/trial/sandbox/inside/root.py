"""Namespaces and the private root of the sandbox, for the mechanism `unshare`.

jail.py imports it by its folder. Standard library only.
"""

import ctypes
import fcntl
import os
import socket
import struct

LIBC = ctypes.CDLL(None, use_errno=True)
# sched.h
CLONE_NEWNS = 0x20000
CLONE_NEWCGROUP = 0x2000000
CLONE_NEWUTS = 0x4000000
CLONE_NEWIPC = 0x8000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
# mount.h
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_NOATIME = 1024
MS_NODIRATIME = 2048
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_RELATIME = 1 << 21
MNT_DETACH = 2
ST_RELATIME = 4096  # statvfs.h; the module os has no name for it
# statvfs flag -> mount flag: inside a user namespace, a remount must repeat the flags that the
# host has locked (mount(2)).
LOCKED = {
    os.ST_NOSUID: MS_NOSUID,
    os.ST_NODEV: MS_NODEV,
    os.ST_NOEXEC: MS_NOEXEC,
    os.ST_NOATIME: MS_NOATIME,
    os.ST_NODIRATIME: MS_NODIRATIME,
    ST_RELATIME: MS_RELATIME,
}
# linux/sockios.h, net/if.h
SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
IFF_UP = 1


def check(code: int, what: str) -> None:
    """Raises OSError with the C library's reason where a call did not return 0."""
    if code != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(
    source: str | None, target: str, kind: str | None, flags: int, data: str | None = None
) -> None:
    """mount(2). Raises OSError that names source and target."""
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    code = LIBC.mount(*texts[:3], ctypes.c_ulong(flags), texts[3])
    check(code, f"mount {source} on {target}")


def enter_namespaces(config: dict) -> None:
    """New mount, PID, network, IPC and host-name namespaces.

    Under an ordinary user a new user namespace owns them."""
    flags = (
        CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP
    )
    uid = os.getuid()
    gid = os.getgid()
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
    """Mount everything under a tmpfs, make that the root, and forget the host's root.

    Outside paths then do not exist."""
    root = config["root"]
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=16m,mode=755")
    for kind, source, target, size in config["mounts"]:
        put_in_place(kind, source, root + target, size)
    mount(None, root, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
    os.chdir(root)
    check(LIBC.pivot_root(b".", b"."), "pivot_root")
    check(LIBC.umount2(b".", MNT_DETACH), "umount of the host's root")
    os.chdir("/")


def put_in_place(kind: str, source: str, place: str, size: int) -> None:
    """One entry of the configuration's mounts; `size` in bytes counts for tmpfs only."""
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


def bind(source: str, place: str, device: bool) -> None:
    """Show `source` at `place`: a device as it is, all else read-only with every mount below it."""
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
            shown = os.statvfs(point).f_flag
            held = sum(flag for seen, flag in LOCKED.items() if shown & seen)
            mount(None, point, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | held)


def raise_loopback() -> None:
    """torchrun's ranks meet on 127.0.0.1; a new network namespace starts with `lo` down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sH14x", b"lo", 0)
        answer = fcntl.ioctl(sock, SIOCGIFFLAGS, request)
        _, flags = struct.unpack("16sH14x", answer)
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))
