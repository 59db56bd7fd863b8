"""Who calls slirp4netns, for real: people in a shell, RootlessKit, Buildah, Podman where tests/podman does not look.

All of it as a normal user on a machine of its own (tests/machine), with a real daemon and real packets.
"""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from netd.stack.addressing import Addressing
from tests.machine.machine import HOST, IMAGE, WORLD, Machine, Unavailable, until
from tests.podman.podman import GENUINE, Daemon, Podman
from tests.podman.test_podman_ports import ask, serve

pytestmark = pytest.mark.skipif(GENUINE, reason="these are tests of netd's shim")

SHIM = str(Path(__file__).resolve().parents[2] / "plugin" / "slirp4netns")

WORLD6, HOST6 = "fd77::1", "fd77::2"
SIX = pytest.mark.skipif(not hasattr(Addressing, "gateway6"), reason="netd's stack has no IPv6 (Addressing.gateway6)")

# What a test's script may use: the shim, a namespace $N of the user's, and `in_n` to run something in there.
PRELUDE = f"""
set -u
slirp4netns={SHIM}
exec 9>&-
unshare --user --map-root-user --net --mount sleep 100 & N=$!
trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT
in_n() {{ nsenter -t $N -U -n -m --preserve-credentials "$@"; }}
until in_n ip link >/dev/null 2>&1 && [ "$(readlink /proc/$N/ns/net)" != "$(readlink /proc/self/ns/net)" ]
do sleep .01; done
# start ARG...: run the shim in the background until it says that it is ready; its pid is in $S
start() {{
    rm -f ready; mkfifo ready
    "$slirp4netns" -r 8 "$@" 8>ready >said 2>&1 & S=$!
    read -r -n1 -t 9 word <ready || {{ echo "not ready: $(cat said)"; exit 1; }}
    [ "$word" = 1 ] || exit 1
}}
"""


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    try:
        machine = Machine(shim=True)
    except Unavailable as e:
        pytest.skip(f"no rootless Podman here: {e}")
    with machine:
        if not machine.has_world:
            pytest.skip("needs root: no outside host, and the network here is not ours to change")
        machine.import_image()
        yield machine


@pytest.fixture(scope="module")
def daemon(machine: Machine) -> Iterator[Daemon]:
    with tempfile.TemporaryDirectory() as own:
        daemon = Daemon(machine, Path(own) / "log")
        daemon.start()
        daemon.warm_up()
        yield daemon
        assert daemon.stop() == 0, daemon.log.read_text()


@pytest.fixture(autouse=True)
def nothing_is_left(machine: Machine, daemon: Daemon) -> Iterator[None]:
    before = daemon.descriptors()
    yield
    until(lambda: not daemon.networks(), "end of the networks")
    until(lambda: not machine.processes("plugin/slirp4netns"), "end of the shims")
    until(lambda: not daemon.descriptors() - before, f"descriptors of before: {daemon.descriptors() - before}")


def shell(machine: Machine, script: str, status: int = 0) -> str:
    return machine.run(["bash", "-c", PRELUDE + script], status=status)


# --- by hand -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tap0", "eth0"])
def test_as_the_manual_page_has_it(machine: Machine, name: str) -> None:
    said = shell(machine, f"""
        start --configure --mtu=65520 --disable-host-loopback $N {name}
        in_n ip -4 -o addr show dev {name}; in_n ip link show dev {name}; in_n ip link show lo; in_n ip route
        in_n ping -c1 -W2 10.0.2.2; in_n curl -s http://{WORLD}/
        kill $S; wait $S; echo status $?
        for i in $(seq 200); do in_n ip link show dev {name} >/dev/null 2>&1 || break; sleep .01; done
        in_n ip -br link; cat said""")  # fmt: skip
    assert "inet 10.0.2.100/24" in said and "mtu 65520" in said and f"default via 10.0.2.2 dev {name}" in said
    assert "LOOPBACK,UP" in said and "1 received" in said and f"you are {HOST} " in said
    alive, ended = said.split("status 143\n")
    assert name in alive and name not in ended.replace("Starting", "").split("Starting")[0].split("* MTU")[0]
    assert "* Recommended IP:  10.0.2.100" in ended


@pytest.mark.parametrize(
    ("cidr", "guest", "gateway", "dns"),
    [
        ("10.0.2.0/24", "10.0.2.100/24", "10.0.2.2", "10.0.2.3"),
        ("192.168.128.0/18", "192.168.128.100/18", "192.168.128.2", "192.168.128.3"),
        ("172.20.1.128/25", "172.20.1.228/25", "172.20.1.130", "172.20.1.131"),
    ],
)
def test_cidr(machine: Machine, cidr: str, guest: str, gateway: str, dns: str) -> None:
    said = shell(machine, f"""
        start -c --cidr={cidr} $N tap0
        in_n ip -4 -o addr show dev tap0; in_n ip route; in_n ping -c1 -W2 {gateway}; in_n curl -s http://{WORLD}/
        in_n dig +short +tries=1 +time=3 @{dns} world""")  # fmt: skip
    assert f"inet {guest}" in said and f"default via {gateway}" in said and "1 received" in said
    assert f"you are {HOST} " in said and WORLD in said.splitlines()


def test_macaddress_and_mtu(machine: Machine) -> None:
    said = shell(machine, """
        start -c --macaddress=02:00:5e:00:00:07 -m 9000 $N tap0
        in_n ip link show dev tap0; in_n ping -c1 -W2 10.0.2.2; cat said""")  # fmt: skip
    assert "link/ether 02:00:5e:00:00:07" in said and "mtu 9000" in said and "1 received" in said
    assert "* MAC address:     02:00:5e:00:00:07" in said
    said = shell(machine, "$slirp4netns -c --macaddress=01:00:5e:00:00:07 $N tap0; echo status $?")
    assert "Cannot assign requested address\nchild failed(1)\nstatus 1" in said


def test_host_loopback_is_open_unless_it_is_disabled(machine: Machine) -> None:
    script = """
        mkdir -p www; echo secret >www/page
        busybox httpd -f -h www -p 127.0.0.1:8070 &
        until curl -s http://127.0.0.1:8070/page >/dev/null; do sleep .02; done
        start -c {0} $N tap0
        in_n curl -s -m 5 http://10.0.2.2:8070/page; echo status $?; in_n ping -c1 -W2 10.0.2.2; cat said"""
    assert "secret\nstatus 0" in (said := shell(machine, script.format("")))
    assert "WARNING: 127.0.0.1:* on the host is accessible as 10.0.2.2" in said
    said = shell(machine, script.format("--disable-host-loopback"))
    assert "status 7" in said and "1 received" in said and "WARNING" not in said


def test_disable_dns(machine: Machine) -> None:
    script = "start -c {0} $N tap0; in_n dig +short +tries=1 +time=1 @10.0.2.3 world; echo status $?"
    assert f"{WORLD}\nstatus 0" in shell(machine, script.format(""))
    assert WORLD not in shell(machine, script.format("--disable-dns"))


def test_outbound_addr(machine: Machine) -> None:
    machine.run(["ip", "addr", "add", "10.77.0.7/24", "dev", "eth0"], "root")
    try:
        script = f"start -c --outbound-addr={{0}} $N tap0; in_n curl -s http://{WORLD}/; cat said"
        for what, source in (("10.77.0.7", "10.77.0.7"), ("eth0", HOST)):
            said = shell(machine, script.format(what))
            assert f"you are {source} " in said and f"* Outbound IPv4:    {source}" in said
    finally:
        machine.run(["ip", "addr", "del", "10.77.0.7/24", "dev", "eth0"], "root")


def test_exit_fd(machine: Machine) -> None:
    said = shell(machine, """
        mkfifo life; exec 7<>life; start -c -e 6 -a api $N tap0 6<life; exec 6>life 7>&-
        ls api; echo data >&6; in_n ping -c1 -W2 10.0.2.2; exec 6>&-
        wait $S; echo status $?; ls api; tail -n 2 said""")  # fmt: skip
    assert "api\n" in said and "1 received" in said
    assert said.split("status 0\n")[1] == (
        "ls: cannot access 'api': No such file or directory\nexitfd event\ndo_slirp is exiting"
    )


CLIENT = """
import json, socket, sys
def ask(execute, **arguments):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect("api")
        s.sendall(json.dumps({"execute": execute, "arguments": arguments}).encode())
        return json.loads(s.makefile("rb").read())
web = dict(proto="tcp", host_addr="127.0.0.1", host_port=8066, guest_addr="10.0.2.100", guest_port=80)
if sys.argv[1] == "publish":
    print(ask("add_hostfwd", **web), ask("list_hostfwd")["entries"] == [dict(web, id=1)])
else:
    for i in range(2, int(sys.argv[1]) + 2):
        added = ask("add_hostfwd", **dict(web, proto=("tcp", "udp")[i % 2], host_port=8067))
        assert added == {"return": {"id": i}} and ask("remove_hostfwd", id=i) == {"return": {}}, (i, added)
    print("done", ask("list_hostfwd")["entries"] == [dict(web, id=1)])
"""


def test_the_api_socket_by_a_client_of_twenty_lines_and_by_netcat(machine: Machine, daemon: Daemon) -> None:
    """Both ways: published and reached, taken back and refused. A thousand more leave no descriptor, in both processes."""
    assert len(CLIENT.splitlines()) <= 20
    machine.run(["sh", "-c", "cat >client.py"], stdin=CLIENT)
    fds = f"ls /proc/$S/fd | wc -l; ls /proc/{inner_daemon(machine, daemon)}/fd | wc -l"
    said = shell(machine, f"""
        start -c -a api $N tap0
        mkdir -p www; echo published >www/page; nsenter -t $N -U -n --preserve-credentials busybox httpd -f -h www -p 80 &
        python3 client.py publish
        for i in $(seq 100); do curl -s -m 5 http://127.0.0.1:8066/page && break; sleep .05; done
        echo before; {fds}; python3 client.py 1000; echo after; {fds}; echo end
        echo '{{"execute":"remove_hostfwd","arguments":{{"id":1}}}}' | nc -U -N api; echo
        curl -s -m 5 http://127.0.0.1:8066/page; echo status $?
        echo '{{"execute":"add_hostfwd","arguments":{{"proto":"tcp","host_port":8066,"guest_port":80}}}}' | nc -U -N api
        echo; curl -s -m 5 http://{HOST}:8066/page""")  # fmt: skip
    assert said.startswith("{'return': {'id': 1}} True\npublished\n")
    assert "done True" in said
    before, after = said.split("before\n")[1].split("done True\nafter\n")
    assert after.split("end\n")[0] == before
    assert after.split("end\n")[1] == '{"return":{}}\nstatus 7\n{"return":{"id":1002}}\npublished'


@SIX
def test_enable_ipv6(machine: Machine) -> None:
    """Without -c the guest has nothing but router advertisements to go by."""
    look = "in_n ip -6 -o addr show dev tap0; in_n ip -6 route; in_n ping -c1 -W2 fd00::2"
    out = f"in_n curl -s -m 5 'http://[{WORLD6}]/'; in_n dig +short +tries=1 +time=3 @fd00::3 world"
    said = shell(machine, f"start -c -6 $N tap0; {look}; {out}")
    assert "inet6 fd00::" in said and "default via fe80::2 dev tap0" in said and "1 received" in said
    assert f"you are {HOST6} " in said
    said = shell(machine, f"""
        start -6 $N tap0; in_n ip link set tap0 up
        for i in $(seq 300); do in_n ip -6 -o addr show dev tap0 | grep 'fd00::' | grep -vq tentative && break; sleep .02; done
        {look}""")  # fmt: skip
    assert "inet6 fd00::" in said and "default via fe80::2 dev tap0" in said and "1 received" in said
    said = shell(machine, "start -c $N tap0; in_n ip -6 -o addr show dev tap0; in_n ip -6 route")
    assert "fd00::" not in said and "default" not in said


@SIX
def test_outbound_addr6(machine: Machine) -> None:
    machine.run(["ip", "addr", "add", "fd77::7/64", "dev", "eth0", "nodad"], "root")
    try:
        said = shell(machine, f"""
            start -c -6 --outbound-addr6=fd77::7 $N tap0; in_n curl -s -m 5 'http://[{WORLD6}]/'; cat said""")  # fmt: skip
        assert "you are fd77::7 " in said and "* Outbound IPv6:    fd77::7" in said
    finally:
        machine.run(["ip", "addr", "del", "fd77::7/64", "dev", "eth0"], "root")


def test_version_and_help_without_a_daemon(machine: Machine) -> None:
    said = shell(machine, """
        export NETD_RUNTIME_DIR=/nonexistent
        $slirp4netns --version; echo status $?; $slirp4netns --help | head -n 1; $slirp4netns $N tap0; echo status $?""")  # fmt: skip
    assert said.startswith("slirp4netns version 1.3") and "status 0\nUsage: " in said
    assert said.endswith("netd: no daemon at /nonexistent/attach.sock: No such file or directory\nstatus 1")


def test_a_target_by_path_with_its_user_namespace(machine: Machine) -> None:
    """As RootlessKit with a detached namespace and bubblejail call it."""
    said = shell(
        machine,
        """
        start -c --userns-path=/proc/$N/ns/user --netns-type=path /proc/$N/ns/net tap0; in_n ping -c1 -W2 10.0.2.2""",
    )
    assert "1 received" in said


def test_without_configure_the_tap_is_bare(machine: Machine) -> None:
    said = shell(machine, """
        start $N tap0; in_n ip addr show dev tap0; echo; in_n ip addr add 10.0.2.77/24 dev tap0
        in_n ip link set tap0 up; in_n ip route add default via 10.0.2.2; in_n curl -s http://{WORLD}/"""
        .replace("{WORLD}", WORLD))  # fmt: skip
    bare = said.split("\n\n")[0]
    assert "inet" not in bare and ",UP" not in bare
    assert f"you are {HOST} " in said  # any address of the guest's own choice


def test_a_tap_that_was_there_before_is_used(machine: Machine) -> None:
    said = shell(machine, """
        in_n ip tuntap add name tap0 mode tap; in_n ip link set tap0 address 02:00:00:00:00:09 up
        in_n ip addr add 10.0.2.100/24 dev tap0
        start $N tap0; in_n ping -c1 -W2 10.0.2.2; kill $S; wait $S; in_n ip link show tap0""")  # fmt: skip
    assert "1 received" in said and "link/ether 02:00:00:00:00:09" in said


def test_a_namespace_of_somebody_else(machine: Machine) -> None:
    said = shell(machine, """
        $slirp4netns --netns-type=path /run/netns/world tap0; echo status $?
        $slirp4netns 1 tap0; echo status $?""")  # fmt: skip
    first, second, _ = said.split("status 1")
    assert first.endswith("setns(CLONE_NEWNET): Operation not permitted\nchild failed(1)\n")
    assert second == "\n/proc/1/ns/net: Permission denied\nchild failed(1)\n"


def test_a_second_one_for_the_same_interface(machine: Machine) -> None:
    said = shell(machine, """
        start -c $N tap0; $slirp4netns -c $N tap0; echo status $?
        in_n ping -c1 -W2 10.0.2.2""")  # fmt: skip
    assert "ioctl(TUNSETIFF): Device or resource busy\nchild failed(1)\nstatus 1" in said and "1 received" in said


def test_on_a_namespace_that_an_earlier_one_left_populated(machine: Machine) -> None:
    """T17: bridges, addresses and routes of before stay, and the device is made anew, three times in a row."""
    said = shell(machine, f"""
        in_n ip link add podman0 type bridge; in_n ip addr add 10.88.0.1/16 dev podman0; in_n ip link set podman0 up
        for i in 1 2 3; do
            start -c $N tap0; in_n curl -s http://{WORLD}/; in_n ip -4 route
            kill -KILL $S; wait $S || true
        done""")  # fmt: skip
    assert said.count(f"you are {HOST} ") == 3 and said.count("default via 10.0.2.2 dev tap0") == 3
    assert said.count("10.88.0.0/16 dev podman0") == 3


@pytest.mark.parametrize("name", ["KILL", "TERM", "HUP"])  # a shell's background job ignores INT
def test_any_signal_takes_the_device_away_at_once(machine: Machine, name: str) -> None:
    said = shell(machine, f"""
        start -c $N tap0; kill -{name} $S; wait $S
        for i in $(seq 200); do in_n ip link show dev tap0 >/dev/null 2>&1 || break; sleep .01; done
        in_n ip -br link""")  # fmt: skip
    assert "tap0" not in said and "lo" in said


# --- RootlessKit ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        "--port-driver=slirp4netns --disable-host-loopback --mtu=65520",
        "--port-driver=slirp4netns --disable-host-loopback --cidr=10.9.0.0/24",
        "--port-driver=builtin --slirp4netns-sandbox=auto --slirp4netns-seccomp=auto",
        "--port-driver=builtin --slirp4netns-sandbox=true --slirp4netns-seccomp=true --disable-host-loopback",
    ],
)
def test_rootlesskit(machine: Machine, daemon: Daemon, options: str) -> None:
    if shutil.which("rootlesskit") is None:
        pytest.skip("rootlesskit is not installed")
    gateway = "10.9.0.2" if "10.9" in options else "10.0.2.2"
    inside = (
        f"ping -c1 -W2 {gateway} && curl -s http://{WORLD}/ && mkdir -p kit && echo published >kit/page && "
        "exec busybox httpd -f -p 80 -h kit"
    )
    command = ["rootlesskit", "--net=slirp4netns", f"--slirp4netns-binary={SHIM}", *options.split(), "--copy-up=/etc"]
    kit = machine.start([*command, "-p", "127.0.0.1:8060:80/tcp", "sh", "-c", inside])
    try:
        page = until(
            lambda: machine.run(["curl", "-sf", "-m", "2", "http://127.0.0.1:8060/page"], status=None), "published page"
        )
        assert page == "published"
        assert len(machine.processes(SHIM, "tap0")) == 1
        ports = daemon.networks()[0]["ports"]
        assert [p["host_port"] for p in ports] == ([8060] if "slirp4netns --" in options else [])
    finally:
        kit.send_signal(signal.SIGTERM)
        said = kit.communicate(timeout=20)[0]
    assert "1 received" in said and f"you are {HOST} " in said


def inner_daemon(machine: Machine, daemon: Daemon) -> int:
    """The daemon's pid inside the machine."""
    [(pid, _)] = [found for found in machine.processes("netd", "serve") if found[1][-1] == "serve"]
    return inner(pid)


def inner(pid: int) -> int:
    """The pid inside the machine of a process seen from outside."""
    with open(f"/proc/{pid}/status") as file:
        return int(next(line for line in file if line.startswith("NSpid:")).split()[-1])


# --- Buildah -------------------------------------------------------------------------------------------------------


def test_buildah_run(machine: Machine) -> None:
    if shutil.which("buildah") is None:
        pytest.skip("buildah is not installed")
    said = machine.run(["sh", "-c", f"""
        c=$(buildah --isolation=rootless from {IMAGE})
        buildah run --isolation=rootless $c sh -c 'ip -4 -o addr show tap0; nslookup world 10.0.2.3; wget -qO- {WORLD}'
        buildah rm $c"""])  # fmt: skip
    assert "inet 10.0.2.100/24" in said and f"Address: {WORLD}" in said and f"you are {HOST} " in said


# --- Podman: the rows of its own tests that name slirp4netns, and traps ---------------------------------------------


@pytest.fixture
def podman(machine: Machine, daemon: Daemon) -> Iterator[Podman]:
    podman = Podman(machine, daemon)
    yield podman
    podman.clear()


def test_info_shows_the_shim_and_its_version(podman: Podman) -> None:
    info = json.loads(podman("info", "--format", "{{json .Host.Slirp4NetNS}}"))
    assert info["executable"] == SHIM
    assert info["version"].startswith("slirp4netns version 1.") and "SLIRP_CONFIG_VERSION_MAX: 4" in info["version"]


@pytest.mark.parametrize("more", [[], ["--userns=keep-id"]])
def test_hosts_resolv_conf_and_address_follow_the_cidr(podman: Podman, more: list[str]) -> None:
    said = podman.run(
        *more, "--network=slirp4netns:cidr=172.31.7.0/24", "--hostname=me", "--",
        "sh", "-c", "cat /etc/hosts; grep nameserver /etc/resolv.conf; ip -4 -o addr show tap0",
    )  # fmt: skip
    assert "172.31.7.100\tme" in said.replace(" ", "\t") and "inet 172.31.7.100/24" in said
    if not more:  # with a user namespace of its own, Podman 4.3 writes 10.0.2.3 whatever the network
        assert said.split("nameserver ")[1].startswith("172.31.7.3")


@pytest.mark.parametrize("handler", ["rootlesskit", "slirp4netns"])
def test_the_source_of_a_published_port_is_never_loopback(podman: Podman, machine: Machine, handler: str) -> None:
    """500-networking.bats: with keep-id the server must see cidr+100 or a 10.x address."""
    network = f"--network=slirp4netns:port_handler={handler}"
    serve(podman, "who", ["--userns=keep-id", network, "-p", "8061:8080"], [8080])
    if handler == "slirp4netns":  # T12: Podman asks for 0.0.0.0
        listening = [line.split()[3] for line in machine.run(["ss", "-Hltn"]).splitlines()]
        assert [where for where in listening if where.endswith(":8061")] == ["0.0.0.0:8061"]
    peer = {"rootlesskit": "10.0.2.100", "slirp4netns": "10.0.2.2"}[handler]
    assert ask(machine, "user", "tcp", "127.0.0.1", 8061) == f"{peer} 8080 hello"


@pytest.mark.parametrize("ipv6", ["true", "false"])
def test_enable_ipv6_is_taken(podman: Podman, ipv6: str) -> None:
    said = podman.run(f"--network=slirp4netns:enable_ipv6={ipv6}", "--", "ip", "-4", "-o", "addr", "show", "tap0")
    assert "inet 10.0.2.100/24" in said


@pytest.mark.parametrize(("cidr", "gateway"), [("", "10.0.2.2"), (",cidr=192.168.0.0/16", "192.168.0.2")])
def test_the_gateway_answers_with_host_loopback_allowed(podman: Podman, cidr: str, gateway: str) -> None:
    network = f"--network=slirp4netns:allow_host_loopback=true,mtu=9000{cidr}"
    said = podman.run(network, "--cap-add=net_raw", "--", "sh", "-c", f"ping -c1 -W2 {gateway}; ip link show tap0")
    assert "1 packets received" in said and "mtu 9000" in said


def test_stats_finds_the_interface(podman: Podman) -> None:
    podman.up("busy", "--", "sh", "-c", f"wget -qO- http://{WORLD}/bytes/100000 >/dev/null; sleep 60")
    until(
        lambda: "kB" in podman("stats", "--no-stream", "--format", "{{.NetIO}}", "busy", status=None), "traffic counted"
    )


def test_kube_play(podman: Podman, machine: Machine) -> None:
    kube = f"""
apiVersion: v1
kind: Pod
metadata: {{name: kube}}
spec:
  containers:
  - {{name: web, image: {IMAGE}, command: [/bin/httpd, -f, -h, /etc], ports: [{{containerPort: 80, hostPort: 8062}}]}}
"""
    machine.run(["sh", "-c", "cat >kube.yaml"], stdin=kube)
    podman("play", "kube", "--network=slirp4netns:port_handler=slirp4netns", "kube.yaml")
    assert podman.answers("http://127.0.0.1:8062/passwd").startswith("root:")
    podman("play", "kube", "--down", "kube.yaml")


def test_restarts_in_an_own_user_namespace(podman: Podman) -> None:
    """Each life has a new namespace, named by pid. (Podman 4.3's restart *policy* deadlocks here, with any command.)"""
    podman.up("short", "--userns=keep-id", "-p", "8065:8080", "--", "sleep", "60")
    for _ in range(5):
        podman("restart", "-t0", "short")
        assert "inet 10.0.2.100/24" in podman("exec", "short", "ip", "-4", "-o", "addr", "show", "tap0")


def test_a_resident_shim_is_in_podmans_own_mount_namespace(podman: Podman, machine: Machine) -> None:
    """T6: in a private copy it would keep every mount of that moment alive."""
    podman.up("resident", "--network=slirp4netns:port_handler=slirp4netns", "-p", "8063:80", "--", "sleep", "60")
    [(shim, argv)] = machine.processes("plugin/slirp4netns", "tap0")
    assert "--enable-sandbox" not in argv and "--disable-host-loopback" in argv  # and T7
    own = machine.run(["podman", "unshare", "readlink", "/proc/self/ns/mnt"])
    assert machine.run(["readlink", f"/proc/{inner(shim)}/ns/mnt"], "root") == own


def test_a_caller_that_waits_for_its_pipes_is_not_held(podman: Podman, machine: Machine) -> None:
    """T5: ``$(podman run -d …)`` ends, though a shim stays; bats' descriptor 3 likewise."""
    said = machine.run(["bash", "-c", f"""
        exec 3> >(cat >&2; echo closed >three)
        id=$(podman run -d --name held --network=slirp4netns:port_handler=slirp4netns -p 8064:80 {IMAGE} sleep 60)
        exec 3>&-; for i in $(seq 300); do [ -s three ] && break; sleep .01; done; cat three; rm three
        echo ${{#id}}"""], timeout=20)  # fmt: skip
    assert said.splitlines()[-2:] == ["closed", "64"]
