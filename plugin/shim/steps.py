"""The steps that few calls need: files and processes, going on in the background, and a command.

``shim`` is the running netd-shim, with all that main.py defines. A command has namespaces of its own (namespaces(7)),
for which it takes three processes: the shim, which stays where it was called; one that unshares and then is no use to
anybody; and its child, the first of the new pid namespace, which the shim adopts. That one waits at a gate, a pipe,
until it is to become the command. The end of the shim is its end, too.
"""

import os

# linux/sched.h, sys/mount.h, linux/prctl.h
NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
NOSUID, NODEV, NOEXEC, REC, SLAVE = 0x2, 0x4, 0x8, 0x4000, 0x80000
PDEATHSIG, CHILD_SUBREAPER = 1, 36

PARTING = 1.0  # seconds for the daemon to take the network down after the command's end
EBUSY, ECHILD = 16, 10
shim = globals()["shim"]
signal, socket = shim.signal, shim.socket
libc = None
leave = shim.leave
child = 0  # the command's pid, until it is reaped
told = gate = ended = -1  # pipes from and to the new process; its pidfd
first_of_all = False  # whether the command is the first process of a pid namespace
struck = 0  # the signal whose default action we carried out


# --- files, processes, the background ------------------------------------------------------------------------------


def create(step):
    # Not blocking either: a capture into a pipe must not stop the daemon. A FIFO without a reader is ENXIO.
    flags = os.O_RDWR if step["read"] else os.O_WRONLY
    flags |= (os.O_APPEND if step["append"] else 0) | (os.O_TRUNC if step["truncate"] else 0)
    flags |= os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    return "", os.open(shim.raw(step["path"]), flags, step["mode"])


def real_path(path):
    try:
        found = os.path.realpath(path)
    except OSError:  # a link that may not be read
        found = b""
    if not found or (os.path.exists(path) and not os.path.lexists(found)):  # or one of /proc/PID/ns: no path at all
        directory, name = os.path.split(path)
        found = os.path.join(os.path.realpath(directory or b"."), name)
    return found


def detach(step):
    """Go on in the background; the process in the foreground waits for a status and a last word."""
    reader, writer = os.pipe()
    if os.fork():
        shim.made.clear()
        os.close(writer)
        shim.daemon.close()
        said = b""
        while part := os.read(reader, 4096):
            said += part
        os.write(2, said[1:])
        os._exit(said[0] if said else 1)
    shim.gate = writer
    shim.made.update({os.path.abspath(path): shim.made.pop(path) for path in list(shim.made)})
    os.setsid()
    os.chdir("/")
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    shim.close_others()
    return f',"pid":{os.getpid()}', -1


def release(step):
    writer, shim.gate = shim.gate, -1
    try:
        os.write(writer, bytes([step["status"]]))  # EPIPE: the foreground was killed, nobody knows of us
    finally:
        os.close(writer)
    return "", -1


# --- a command in namespaces of its own ----------------------------------------------------------------------------


def call(name, *arguments):
    wide = [ctypes.c_ulong(each) if isinstance(each, int) else each for each in arguments]
    if getattr(libc, name)(*wide) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def say(path, content):
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, content)
        finally:
            os.close(fd)
    except OSError as error:
        raise OSError(error.errno, f"{path}: {error.strerror}") from None


def spawn(step):
    global child, ctypes, libc, told, gate, first_of_all
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if child:
        raise OSError(EBUSY, "there is a command already")
    argv = [shim.raw(word) for word in step["argv"]]
    program = argv[0] if argv else os.environb.get(b"SHELL", b"/bin/sh")
    argv[:1] = [shim.raw(step["arg0"]) or (program if argv else b"-" + program)]
    words = (ctypes.c_char_p * (len(argv) + 1))(*argv)
    hostname, userns, first_of_all = shim.raw(step["hostname"]), step["userns"], step["pidns"]
    call("prctl", CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would take the status from us
    told, tell = os.pipe()
    held, gate = os.pipe()
    first = os.fork()
    if not first:
        try:
            shim.made.clear()
            shim.close_others(tell, held)
            shim.daemon.close()
            pid = unshare(userns, first_of_all)
            if pid:
                os.write(tell, b"!%d\0" % pid)
            elif os.read(held, 1):
                missing = "\n".join(settle(hostname, first_of_all))
                os.write(tell, shim.raw(f"!{missing}\0"))
                if os.read(held, 1):
                    become(program, words)
        except OSError as error:
            os.write(tell, shim.raw(f"{error.errno} {error.strerror}\0"))
        finally:
            os._exit(1)
    os.close(tell)
    os.close(held)
    os.waitpid(first, 0)
    shim.leave = shim.end = abandon
    try:
        child = int(hear())
        os.write(gate, b"1")
        missing = hear()
        netns = os.open(f"/proc/{child}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except BaseException:
        give_up()
        raise
    return f',"pid":{child},"text":{shim.quote(missing)}', netns


def hear():
    """What the new process tells, up to a NUL: after a "!" it is well, else OSError."""
    said = b""
    while not said.endswith(b"\0"):
        part = os.read(told, 4096)
        if not part:
            raise OSError(ECHILD, "the new process ended")
        said += part
    said = shim.text(said[:-1])
    if said[0] == "!":
        return said[1:]
    number, _, reason = said.partition(" ")
    raise OSError(int(number), reason)


def give_up():
    global child, told, gate
    for fd in (told, gate):
        os.close(fd)
    told = gate = -1
    if child:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        child = 0


def abandon(status, reason=""):
    if child:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    leave(status, reason)


# --- the new process -----------------------------------------------------------------------------------------------


def unshare(userns, pidns):
    """The pid of the first process in the new namespaces; 0 in that one."""
    uid, gid = os.geteuid(), os.getegid()
    call("unshare", NEWNS | NEWUTS | NEWIPC | NEWNET | (NEWPID if pidns else 0) | (NEWUSER if userns else 0))
    if userns:
        say("/proc/self/setgroups", b"deny")  # user_namespaces(7): the price of a gid map
        say("/proc/self/uid_map", b"0 %d 1\n" % uid)
        say("/proc/self/gid_map", b"0 %d 1\n" % gid)
    return os.fork()


def settle(hostname, pidns):
    """What the caller's rights do not suffice for, one line each."""
    call("prctl", PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # of the shim, which has adopted us by now
    try:
        if hostname:
            socket.sethostname(hostname)
    except OSError as error:
        yield f"couldn't set the host name: {error.strerror}"
    try:
        say("/proc/sys/net/ipv4/ping_group_range", b"0 0")
    except OSError as error:
        yield f"couldn't let ping sockets be made: {error.strerror}"
    try:
        call("mount", None, b"/", None, REC | SLAVE, None)  # mounts would be seen outside where userns is false
        if pidns:
            call("mount", b"proc", b"/proc", b"proc", NOSUID | NODEV | NOEXEC, None)
    except OSError as error:
        yield f"couldn't mount /proc: {error.strerror}"


def become(program, words):
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores these two, and exec would keep that
        signal.signal(number, signal.SIG_DFL)
    for fd in shim.absent:
        os.close(fd)
    libc.execvp(program, words)
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))


# --- while it runs -------------------------------------------------------------------------------------------------


def run(step):
    global told, gate, ended
    if gate < 0:
        raise OSError(ECHILD, "there is no command to run")
    shim.close_others(told, gate)
    for number in (signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, on_key)
    try:
        ended = os.pidfd_open(child)
        os.write(gate, b"1")
        said = os.read(told, 4096)  # exec closes the other end
        if said:
            number, _, reason = shim.text(said[:-1]).partition(" ")
            raise OSError(int(number), reason)
    except OSError:
        give_up()
        raise
    os.close(told)
    os.close(gate)
    told = gate = -1
    shim.daemon.settimeout(None)
    shim.staying = True
    shim.receive, shim.end = receive, go_on
    return "", -1


def on_key(number, _):
    """^C or ^\\, which the command gets as well. The kernel spares the first process of a pid namespace the default
    action (pid_namespaces(7)), and so a command that does not know of it would not end."""
    global struck
    own = 0
    try:
        with open(f"/proc/{child}/status", "rb") as file:
            for line in file:
                if line[:7] in (b"SigIgn:", b"SigCgt:", b"SigBlk:"):
                    own |= int(line[7:], 16)
        if first_of_all and not own & 1 << number - 1:
            os.kill(child, signal.SIGKILL)
            struck = number
    except OSError:
        pass  # it has ended


def receive():
    """The daemon's next message, if the command's end does not come first."""
    import select

    poll = select.poll()
    poll.register(ended, select.POLLIN)
    poll.register(shim.daemon, select.POLLIN)
    if any(fd == ended for fd, _ in poll.poll()):
        status = status_of_command()
        part()
        leave(status)
    return shim.daemon.recv(shim.MAX_MESSAGE)


def go_on(_, reason=""):
    """The network has ended. The command has not, and its status is what the caller waits for."""
    if reason:
        shim.put(2, reason[:-1] + "; the command goes on without a network\n")
    shim.daemon.close()
    leave(status_of_command())


def status_of_command():
    """As a shell tells it."""
    global child
    _, status = os.waitpid(child, 0)
    child = 0
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGKILL and struck:
        code = -struck
    return code if code >= 0 else 128 - code


def part():
    """Have the daemon take the network down, and wait for that: the next command may want the same ports."""
    try:
        shim.daemon.shutdown(socket.SHUT_WR)
        shim.daemon.settimeout(PARTING)
        while shim.daemon.recv(shim.MAX_MESSAGE):
            pass
    except OSError:
        pass


ANSWERED = {
    "create": create,
    "detach": detach,
    "release": release,
    "spawn": spawn,
    "run": run,
}
