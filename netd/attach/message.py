"""What the shim and the daemon say to each other (DESIGN §5): one JSON object a message over SOCK_SEQPACKET.

The shim opens with a ``Hello``. Then the daemon sends steps, one at a time. To each but ``Stay`` and ``Exit`` the
shim sends one ``Answer``, with the descriptor that was asked for as SCM_RIGHTS. ``plugin/shim/`` is the other
side, written without this module; VERSION changes when one of the two could no longer do without the other's change.

Texts are those of the operating system: bytes that are no UTF-8 are carried as lone surrogates (PEP 383).
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from netd.errors import InvalidSpec

VERSION = 1
MAX_MESSAGE = 65536  # bytes
MAX_WORDS = 4096  # arguments of one command line
_CLIP = 2500  # characters, each of at most 12 bytes in JSON; two texts fit


def _os_text(value: object) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("not a text without NUL")
    return value


OsText = Annotated[str, PlainValidator(_os_text)]  # pydantic's own str refuses lone surrogates


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)


class Hello(_Message):
    """How the shim was called."""

    version: Literal[1]
    argv0: OsText
    argv: Annotated[list[OsText], Field(max_length=MAX_WORDS)]
    cwd: OsText  # "" when it cannot be told
    pid: Annotated[int, Field(gt=0)]  # as the shim sees itself
    env: dict[OsText, OsText]  # the variables named _CONTAINERS_*, which Podman sets
    fd1: OsText  # what /proc/self/fd/1 links to, or ""


class Answer(_Message):
    """What came of a step. ``errno`` may be 0 with ``ok`` false: a refusal that is not the kernel's."""

    ok: bool
    errno: int = 0
    error: OsText = ""
    pid: int = 0  # Detach: of the process that goes on; Spawn: of the command
    text: OsText = ""  # Realpath, Open: the path; Spawn: what was not permitted, one line each


class Step(_Message):
    """Base of what the daemon asks."""

    op: str


class Open(Step):
    """Open ``path`` for reading, in the shim's mount namespace and working directory, and send the descriptor.

    With ``real`` the answer tells besides, in ``text``, what ``Realpath`` would; earlier shims do not know of it.
    """

    op: Literal["open"] = "open"
    path: OsText
    real: bool = False


class Create(Step):
    """Open ``path`` for writing as ``Open`` does for reading, made with ``mode`` less the umask where it is missing.

    The descriptor is non-blocking, which a pipe feels: one without a reader is ENXIO, a full one EAGAIN.
    """

    op: Literal["create"] = "create"
    path: OsText
    mode: int = 0o600
    append: bool = False
    truncate: bool = True
    read: bool = False  # for reading as well


class Pidfd(Step):
    """Open the process ``pid`` of the shim's pid namespace (pidfd_open(2)) and send the descriptor."""

    op: Literal["pidfd"] = "pidfd"
    pid: int


class Realpath(Step):
    """Tell, in ``text``, where ``path`` leads to in the shim's mount namespace: absolute, without links. It need not
    exist. A link of /proc that leads to no path, as /proc/PID/ns/net, is left where it is."""

    op: Literal["realpath"] = "realpath"
    path: OsText


class SendFd(Step):
    """Send the descriptor that the caller gave the shim under the number ``fd``."""

    op: Literal["fd"] = "fd"
    fd: int


class Listen(Step):
    """Make a listening unix socket at ``path`` (mode 0777 less the umask) and send it."""

    op: Literal["listen"] = "listen"
    path: OsText  # shorter than 108 bytes
    type: Literal["stream", "seqpacket"] = "stream"
    backlog: int = 64
    replace: bool = True  # unlink what is there before
    remove: bool = False  # unlink it at Exit, if it is still the same file,
    always: bool = False  # and as well where a signal ends the shim


class Write(Step):
    """Write ``text`` to the file ``path``, made with ``mode`` less the umask where it is missing."""

    op: Literal["write"] = "write"
    path: OsText
    text: OsText
    mode: int = 0o644


class Print(Step):
    """Say something to the caller."""

    op: Literal["print"] = "print"
    stdout: OsText = ""
    stderr: OsText = ""


class Close(Step):
    """Close the shim's descriptor ``fd``."""

    op: Literal["close"] = "close"
    fd: int


class Detach(Step):
    """Go on in a background process of a new session: 0-2 are /dev/null, the directory is /, all else is closed.

    The foreground process waits for ``Release``. The answer has the pid of the one that goes on.
    """

    op: Literal["detach"] = "detach"


class Release(Step):
    """After Detach: let the foreground process exit with ``status``."""

    op: Literal["release"] = "release"
    status: Annotated[int, Field(ge=0, le=255)]


class Spawn(Step):
    """Make a process in new network, mount, UTS and IPC namespaces, in a new pid namespace with ``pidns``, and with
    ``userns`` in a new user namespace, where the caller is 0.

    It waits for ``Run``; until then ``Exit``, or the loss of the daemon, is its end as well. The shim's always is.

    The answer has its pid, what was not permitted (``text``), and the network namespace's descriptor. Of what may fail
    are /proc mounted anew, the host name, and ``net.ipv4.ping_group_range`` "0 0"; lo is left down. No new user
    namespace permitted or, without one, no CAP_SYS_ADMIN is a refusal of the whole (EPERM).
    """

    op: Literal["spawn"] = "spawn"
    argv: list[OsText]  # empty: $SHELL, or /bin/sh where that is not set, as a login shell
    arg0: OsText = ""  # what the command sees as its argv[0], if it is not argv[0]
    hostname: OsText = ""  # "" leaves it as it is
    userns: bool = True
    pidns: bool = True


class Run(Step):
    """After Spawn, when the network is ready: have the process become its command, found as by execvp(3). The answer
    tells if it could be executed; if not, the process is gone.

    From then on the shim waits without limit, as after ``Stay``, also for the command's end. It exits with the
    command's status, or 128 and the signal that ended it, at the hang-up of the daemon's last descriptor of the
    connection but a second later at most: what the command's network had is free again then. ``Exit`` or the end
    of the connection is told to the caller, and the shim goes on waiting for the command.
    """

    op: Literal["run"] = "run"


class Stay(Step):
    """The network is ready: close everything the caller leaked (3 and up) and wait without limit. Not answered."""

    op: Literal["stay"] = "stay"
    stdout: OsText = ""
    stderr: OsText = ""


class Exit(Step):
    """Print, remove what Listen said to remove, and exit with ``status``. Not answered."""

    op: Literal["exit"] = "exit"
    status: Annotated[int, Field(ge=0, le=255)]
    stdout: OsText = ""
    stderr: OsText = ""


M = TypeVar("M", Hello, Answer)


def read_hello(data: bytes) -> Hello:
    """The shim's first message. InvalidSpec with one line about what is wrong, the version before all else."""
    message = _read_object(data)
    version = message.get("version")
    if version != VERSION:
        raise InvalidSpec(
            f"the shim speaks version {version!r:.20} of the attach protocol, this daemon speaks {VERSION}",
            hint="install the shim that came with this netd, or restart netd after an upgrade",
        )
    return _validated(Hello, message)


def read_answer(data: bytes) -> Answer:
    """The shim's answer to a step. InvalidSpec when it is none."""
    return _validated(Answer, _read_object(data))


def write(step: Step) -> bytes:
    """The message for ``step``. Of a text that is too long for one, such as an echoed argument, the end is missing."""
    message = step.model_dump()
    data = _dump(message)
    if len(data) > MAX_MESSAGE:
        data = _dump({key: value[:_CLIP] if isinstance(value, str) else value for key, value in message.items()})
    return data


def _dump(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode("ascii")


def _read_object(data: bytes) -> dict[str, Any]:
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        raise InvalidSpec("not a message of the attach protocol: no JSON") from None
    if not isinstance(message, dict):
        raise InvalidSpec("not a message of the attach protocol: no object")
    return message


def _validated(model: type[M], message: dict[str, Any]) -> M:
    try:
        return model.model_validate(message)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ascii(".".join(str(part) for part in first["loc"]))[1:-1]
        raise InvalidSpec(f"not a message of the attach protocol: {where:.60}: {first['msg']}") from None
