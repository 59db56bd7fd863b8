"""What the shim does where no daemon listens: start it, become the real program, or say why not."""

import os
import sys
from time import monotonic, sleep

shim = globals()["shim"]
signal = shim.signal
AT_HAND = {"--help": "help", "-h": "help", "--version": "version", "-v": "version"}


def start_service():
    """Have the user's service manager start netd, where there is one. True if it says that it did."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if text_at_hand() or not runtime or not os.path.isdir(runtime + "/systemd"):
        return False
    null = os.open("/dev/null", os.O_RDWR)
    words = ["systemctl", "--user", "--quiet", "start", "netd.socket", "netd.service"]
    streams = [(os.POSIX_SPAWN_DUP2, null, fd) for fd in (0, 1, 2)]
    try:
        pid = os.posix_spawnp(words[0], words, os.environ, file_actions=streams)
    except OSError:
        return False
    finally:
        os.close(null)
    end = monotonic() + shim.WAIT
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status == 0
        if monotonic() > end:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            return False
        sleep(0.01)


def on_unavailable():
    """What the owner wants when there is no daemon: "fail" or "exec-real"."""
    choice = os.environ.get("NETD_ON_UNAVAILABLE")
    if choice:
        return choice
    home = os.environ.get("XDG_CONFIG_HOME") or os.environ.get("HOME", "") + "/.config"
    path = os.environ.get("NETD_CONFIG") or home + "/netd/netd.toml"
    try:
        with open(path, "rb") as file:
            import tomllib

            return tomllib.load(file).get("on_unavailable", "fail")
    except FileNotFoundError:
        return "fail"
    except (OSError, ValueError) as error:
        shim.fail(f"{path}: {error}")


def text_at_hand():
    """For a caller who only wants the help text or the version: the file NAME.help or NAME.version beside this one.

    Whoever lists what is installed (podman info) need not have a daemon for that. The daemon says the same.
    """
    kind = AT_HAND.get(sys.argv[1]) if len(sys.argv) == 2 else None
    name = os.path.basename(sys.argv[0])
    if kind is None or (sys.argv[1] == "-v" and name != "slirp4netns"):  # no option of the others
        return ""
    try:
        with open(f"{shim.HOME}/{name}.{kind}", encoding="utf-8") as file:
            return file.read().replace("{argv0}", shim.text(sys.argv[0]))
    except OSError:
        return ""


def unavailable(reason):
    """There is no daemon to serve this call: become the real program, if that is wanted, or say why not."""
    name = os.path.basename(sys.argv[0])
    if on_unavailable() == "exec-real" and "NETD_EXEC_REAL" not in os.environ:
        known = (sys.argv[0], shim.HOME + "/netd-shim", shim.HOME + "/slirp4netns")
        ours = [os.stat(path) for path in known if os.path.exists(path)]
        for directory in [*os.environ.get("PATH", "").split(":"), "/usr/bin"]:
            path = f"{directory}/{name}"
            if (
                not directory
                or not os.access(path, os.X_OK)
                or any(os.path.samestat(os.stat(path), one) for one in ours)
            ):
                continue
            os.environ["NETD_EXEC_REAL"] = "1"  # ends the search if that is another shim
            for number in (
                shim.signal.SIGPIPE,
                shim.signal.SIGXFSZ,
            ):  # Python ignores these two, and exec would keep that
                shim.signal.signal(number, shim.signal.SIG_DFL)
            for fd in shim.absent:
                os.close(fd)
            try:
                os.execv(path, [path, *sys.argv[1:]])
            except OSError as error:
                shim.fail(f"{reason}; {path}: {error.strerror}")
        reason += f"; and no other {name} was found to run instead"
    told = text_at_hand()
    if told:
        shim.put(1, told)
        shim.leave(0)
    shim.fail(reason)
