"""The namespaces of ``netd run``: user (we are its root), mount, network. user_namespaces(7), mount_namespaces(7)."""

from __future__ import annotations

import ctypes
import errno
import os
import signal

from netd.cli.failure import Failure

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x20000, 0x10000000, 0x40000000  # linux/sched.h
MS_BIND, MS_REC, MS_SLAVE = 0x1000, 0x4000, 0x80000  # linux/mount.h
MNT_DETACH = 2  # sys/mount.h
PR_SET_PDEATHSIG = 1  # linux/prctl.h

RESOLV_CONF = "/etc/resolv.conf"

_libc = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    """The kernel declined ``stage`` with errno ``number``."""

    def __init__(self, stage: str, number: int) -> None:
        super().__init__(f"{stage}: {os.strerror(number)}")
        self.stage = stage
        self.number = number


def die_with(parent: int, number: int) -> None:
    """Get signal ``number`` when ``parent``, our parent process, ends; at once if it has. prctl(2)."""
    _call("prctl", _libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0))
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def isolate(parent: int) -> None:
    """Move this process into new namespaces, its own uid and gid being 0 there. Refused."""
    uid, gid = os.geteuid(), os.getegid()
    _call("unshare", _libc.unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWNS))
    die_with(parent, signal.SIGKILL)  # after unshare, which may clear it
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        try:
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
        except OSError as exc:
            raise Refused(name, exc.errno or 0) from None
    # What is mounted outside later still arrives here; what is mounted here stays here.
    _call("mount", _libc.mount(b"none", b"/", None, ctypes.c_ulong(MS_REC | MS_SLAVE), None))


def use_name_servers(addresses: list[str]) -> None:
    """Have /etc/resolv.conf name these, in our mount namespace only; the host's search domains and options stay.

    The file lives on a tmpfs that nobody else can see: mounted over the old file's directory, bound from there to the
    old file, taken off again. Refused, OSError.
    """
    lines = [f"nameserver {address}\n" for address in addresses]
    with open(RESOLV_CONF, encoding="utf-8", errors="replace") as old:
        lines += [line.rstrip("\n") + "\n" for line in old if line.split()[:1] in (["search"], ["domain"], ["options"])]
    target = os.path.realpath(RESOLV_CONF)
    directory = os.fsencode(os.path.dirname(target))
    covered = os.open(target, os.O_PATH | os.O_CLOEXEC)
    try:
        _call("mount", _libc.mount(b"netd", directory, b"tmpfs", ctypes.c_ulong(0), b"mode=755,size=64k"))
        try:
            new = os.path.join(directory, b"resolv.conf")
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            with open(fd, "w", encoding="utf-8") as file:
                os.fchmod(fd, 0o644)
                file.writelines(lines)
            place = f"/proc/self/fd/{covered}".encode()
            _call("mount", _libc.mount(new, place, None, ctypes.c_ulong(MS_BIND), None))
        finally:
            _call("umount", _libc.umount2(directory, MNT_DETACH))
    finally:
        os.close(covered)


def refusal(stage: str, number: int) -> Failure:
    """Why there are no namespaces, in words, with what to do about it."""
    if stage == "fork":
        return Failure("the process that makes the namespaces ended early")
    why = f"user namespaces are not permitted here ({stage}: {os.strerror(number)})"
    for path, forbidden, hint in (
        ("/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=15000"),
        ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
        ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1",
         "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for this Python"),
    ):  # fmt: skip
        try:
            with open(path) as file:
                if file.read().strip() == forbidden:
                    return Failure(why, f"as root: {hint}")
        except OSError:
            continue
    if number == errno.EPERM:
        return Failure(why, "a container's seccomp profile, a chroot or a security module forbids it")
    return Failure(why)


def _call(stage: str, result: int) -> None:
    if result != 0:
        raise Refused(stage, ctypes.get_errno())
