"""The shim's life: it meets the daemon and does what it is told.

It knows no command line. It tells the daemon how it was called and then does the small things it is asked, in the
namespaces, with the descriptors and under the pid of whoever called it, until told to exit. The daemon's side, and
the list of steps, is netd/attach/message.py. One JSON object a message over a SOCK_SEQPACKET socket.

It runs for every container, twice where Podman is of the older kind (a --help probe, then the real call), so start-up
is what it is written for: no ``os``, whose import takes longer than all that a call does. What few calls need is in
steps.py and absent.py, read when it is asked for.
"""

import posix
import sys
from time import monotonic, sleep

try:  # the C halves of socket, json and signal: importing the public modules takes longer than all the rest
    import _signal as signal
    import _socket as socket
    from _json import encode_basestring_ascii as quote
    from _json import make_scanner

    class Rules:
        strict, memo, object_hook, object_pairs_hook = True, {}, None, None
        parse_float, parse_int, parse_constant = float, int, float

    scan = make_scanner(Rules)

    def decode(text):
        return scan(text, 0)[0]

except (ImportError, AttributeError, TypeError):
    import signal
    import socket
    from json import dumps as quote
    from json import loads as decode

part = globals()["part"]  # netd-shim has put us into its own names
VERSION = 1
WAIT = 10.0  # seconds for a connection, and for each step until the network is ready
MAX_MESSAGE = 65536  # bytes
S_IFMT, S_IFLNK = 0o170000, 0o120000  # inode(7)

daemon = None  # the connection
gate = -1  # after a detach: the pipe whose other end releases the process in the foreground
absent = set()  # standard descriptors that the caller did not give us
made = {}  # socket files to take away again at exit: path -> (device, inode)
staying = False  # the network is ready


def text(value):
    """The bytes behind ``value`` as UTF-8 text, whatever the locale; other bytes become lone surrogates."""
    if isinstance(value, str):
        value = value.encode(sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())
    return value.decode("utf-8", "surrogateescape")


def raw(value):
    return value.encode("utf-8", "surrogateescape")


def put(fd, message):
    """Write all of ``message``; a reader that has gone is not our concern."""
    data = raw(message)
    try:
        while data and fd not in absent:
            data = data[posix.write(fd, data) :]
    except OSError:
        pass


def identity(status):
    return status.st_dev, status.st_ino


def clear_away():
    for path, ours in made.items():
        try:
            if identity(posix.lstat(path)) == ours:  # not one that a successor has put there
                posix.unlink(path)
        except OSError:
            pass


def on_signal(number, _):
    clear_away()
    signal.signal(number, signal.SIG_DFL)
    posix.kill(posix.getpid(), number)


def leave(status, reason=""):
    clear_away()
    if gate >= 0:
        try:
            posix.write(gate, bytes([status]) + raw(reason))
        except OSError:
            pass
    else:
        put(2, reason)
    posix._exit(status)


end = leave  # at the daemon's word, or its loss


def fail(reason):
    end(1, f"{sys.argv[0].rpartition('/')[2]}: netd: {reason}\n")


# --- finding the daemon --------------------------------------------------------------------------------------------


def runtime_dir():
    env = posix.environ.get
    if env(b"NETD_RUNTIME_DIR"):
        return env(b"NETD_RUNTIME_DIR")
    if env(b"XDG_RUNTIME_DIR"):
        return env(b"XDG_RUNTIME_DIR") + b"/netd"
    uid = env(b"_CONTAINERS_ROOTLESS_UID") or b"%d" % posix.getuid()  # in Podman's user namespace everybody is 0
    return b"/run/netd" if uid == b"0" else b"/run/user/%b/netd" % uid


def connect(directory):
    """Connect to the daemon. A full backlog (EAGAIN) is waited for, a missing listener is not."""
    path = directory + b"/attach.sock"
    if len(path) > 107:  # sun_path, unix(7)
        path = b"/proc/self/fd/%d/attach.sock" % posix.open(directory, posix.O_PATH | posix.O_CLOEXEC)
    end = monotonic() + WAIT
    while True:
        link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        link.settimeout(WAIT)
        try:
            link.connect(path)
            return link
        except BlockingIOError:
            link.close()
            if monotonic() > end:
                raise
            sleep(0.02)


# --- the steps -----------------------------------------------------------------------------------------------------


def open_path(step):
    # Not blocking, so that a FIFO in that place cannot hold us.
    flags = posix.O_RDONLY | posix.O_NONBLOCK | posix.O_NOCTTY | posix.O_CLOEXEC
    return real_path(step)[0] if step.get("real") else "", posix.open(raw(step["path"]), flags)


def real_path(step):
    path = raw(step["path"])
    directory, slash, name = path.rpartition(b"/")
    fd = -1
    try:
        if posix.lstat(path).st_mode & S_IFMT == S_IFLNK or name in (b"", b".", b".."):
            raise FileNotFoundError
        fd = posix.open(directory or slash or b".", posix.O_PATH | posix.O_CLOEXEC)
        found = posix.readlink(b"/proc/self/fd/%d" % fd)
        if identity(posix.stat(found)) != identity(posix.fstat(fd)):
            raise FileNotFoundError
        found = found.rstrip(b"/") + b"/" + name
    except OSError:  # one that needs to be followed link by link
        found = part("steps")["real_path"](path)
    finally:
        if fd >= 0:
            posix.close(fd)
    return f',"text":{quote(text(found))}', -1


def pidfd(step):
    return "", posix.pidfd_open(step["pid"])


def send_fd(step):
    if step["fd"] in absent or step["fd"] == daemon.fileno():
        raise OSError(9, posix.strerror(9))  # EBADF: ours, not the caller's
    return "", posix.dup(step["fd"])


def listen(step):
    path = raw(step["path"])
    kind = socket.SOCK_SEQPACKET if step["type"] == "seqpacket" else socket.SOCK_STREAM
    listener = socket.socket(socket.AF_UNIX, kind)
    try:
        if step["replace"]:
            try:
                posix.unlink(path)
            except OSError:
                pass  # bind says what is wrong
        listener.bind(path)
        if step["remove"]:
            made[path] = identity(posix.lstat(path))
            for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM) if step["always"] else ():
                if signal.getsignal(number) == signal.SIG_DFL:
                    signal.signal(number, on_signal)
        listener.listen(step["backlog"])
        return "", listener.detach()
    except BaseException:
        listener.close()
        raise


def write_file(step):
    flags = posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC | posix.O_NONBLOCK | posix.O_NOCTTY | posix.O_CLOEXEC
    fd = posix.open(raw(step["path"]), flags, step["mode"])
    try:
        posix.write(fd, raw(step["text"]))
    finally:
        posix.close(fd)
    return "", -1


def show(step):
    put(2, step["stderr"])
    put(1, step["stdout"])
    return "", -1


def close_fd(step):
    if step["fd"] != daemon.fileno():
        posix.close(step["fd"])
    return "", -1


def close_others(*more):
    """Close what the caller leaked into us (podman.md, T4-T6): a held pipe makes somebody wait for ever."""
    kept = (daemon.fileno(), gate, *more)
    for name in posix.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in kept:
            try:
                posix.close(int(name))
            except OSError:
                pass  # the descriptor that listed the directory


ANSWERED = {
    "open": open_path,
    "realpath": real_path,
    "pidfd": pidfd,
    "fd": send_fd,
    "listen": listen,
    "write": write_file,
    "print": show,
    "close": close_fd,
}


def receive():
    return daemon.recv(MAX_MESSAGE)


def serve(message):
    """Do what the daemon asks, ``message`` first, until it says exit or is gone."""
    global staying
    while True:
        if not message:
            raise ConnectionResetError(0, "it went away" if staying else "it ended before the network was ready")
        step = decode(message.decode())
        op = step["op"]
        if op == "exit":
            if gate >= 0:  # the process in the foreground has the caller's ear
                end(step["status"], step["stderr"])
            show(step)
            end(step["status"])
        if op == "stay":
            show(step)
            close_others()
            daemon.settimeout(None)
            staying = True
            message = receive()
            continue
        fd = -1
        try:
            if op not in ANSWERED:
                ANSWERED.update(part("steps")["ANSWERED"])
            extra, fd = ANSWERED[op](step)
            answer = f'{{"ok":true{extra}}}'
        except OSError as error:
            why = error.strerror or str(error)
            answer = f'{{"ok":false,"errno":{error.errno or 0},"error":{quote(why)}}}'
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fd.to_bytes(4, sys.byteorder))] if fd >= 0 else []
        daemon.sendmsg([answer.encode()], rights)
        if fd >= 0:
            posix.close(fd)
        message = receive()


def hello():
    try:
        cwd = posix.getcwdb()
    except OSError:
        cwd = b""
    try:
        link = posix.readlink("/proc/self/fd/1") if 1 not in absent else ""
    except OSError:
        link = ""
    env = [f"{quote(text(k))}:{quote(text(v))}" for k, v in posix.environ.items() if k.startswith(b"_CONTAINERS_")]
    argv = [quote(text(word)) for word in sys.argv]
    return (
        f'{{"version":{VERSION},"argv0":{argv[0]},"argv":[{",".join(argv[1:])}],"cwd":{quote(text(cwd))},'
        f'"pid":{posix.getpid()},"env":{{{",".join(env)}}},"fd1":{quote(text(link))}}}'
    ).encode()


def main():
    global daemon
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a signal ends us by that signal
    for fd in (0, 1, 2):  # closed ones would be reused, and our socket would be taken for stdout
        try:
            posix.fstat(fd)
        except OSError:
            absent.add(posix.open("/dev/null", posix.O_RDWR))
    directory = runtime_dir()
    try:
        try:
            daemon = connect(directory)
        except (FileNotFoundError, ConnectionRefusedError):
            if not part("absent")["start_service"]():
                raise
            daemon = connect(directory)
        daemon.sendmsg([hello()])
        first = daemon.recv(MAX_MESSAGE)
        if not first:  # a service manager that listened for a daemon which did not start
            raise ConnectionResetError(0, "it closed the connection")
    except OSError as error:
        part("absent")["unavailable"](f"no daemon at {text(directory)}/attach.sock: {error.strerror or error}")
    try:
        serve(first)
    except TimeoutError:
        fail(f"the daemon gave no answer in {WAIT:.0f} s")
    except OSError as error:
        fail(f"lost the daemon: {error.strerror or error}")
    except Exception as error:  # _json raises more kinds than one would name (SystemError too)
        fail(f"the daemon and this shim do not fit together: {error!r}")


main()
