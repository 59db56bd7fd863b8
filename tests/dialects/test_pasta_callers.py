"""Who calls pasta, for real: people in a shell, scripts, what configures itself. As a normal user, with a real daemon.

Podman's own ways of calling it are in tests/podman, for machines that have Podman 5.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.machine.machine import HOST, WORLD, Machine, Unavailable, until
from tests.podman.podman import GENUINE, Daemon

pytestmark = pytest.mark.skipif(GENUINE, reason="these are tests of netd's shim")

PLUGIN = Path(__file__).resolve().parents[2] / "plugin"
HOST6 = "fd77::2"
QUIET = "--no-map-gw -t none -u none -T none -U none"  # the gateway is the world: not to be mapped

# What a test's script may use: the shims, a namespace $N of the user's, and `in_n` to run something in there.
PRELUDE = f"""
set -u
pasta={PLUGIN}/pasta pesto={PLUGIN}/pesto
exec 9>&-
unshare --user --map-root-user --net --mount sleep 100 & N=$!
trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT
exec_n() {{ exec nsenter -t $N -U -n -m --preserve-credentials "$@"; }}
in_n() {{ nsenter -t $N -U -n -m --preserve-credentials "$@"; }}
until in_n ip link >/dev/null 2>&1 && [ "$(readlink /proc/$N/ns/net)" != "$(readlink /proc/self/ns/net)" ]
do sleep .01; done
# soon WORDS...: until that succeeds, two seconds at most
soon() {{ for _ in $(seq 200); do "$@" >/dev/null 2>&1 && return; sleep .01; done; echo "not soon: $*"; return 1; }}
gone() {{ ! kill -0 "$1" 2>/dev/null; }}
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
        yield machine


@pytest.fixture(scope="module")
def daemon(machine: Machine) -> Iterator[Daemon]:
    with tempfile.TemporaryDirectory() as own:
        daemon = Daemon(machine, Path(own) / "log")
        daemon.start()
        shell(machine, f"$pasta --config-net {QUIET} -- curl -s http://{WORLD}/")  # what is opened once is open
        until(lambda: not daemon.networks(), "end of the first network")
        yield daemon
        assert daemon.stop() == 0, daemon.log.read_text()


@pytest.fixture(autouse=True)
def nothing_is_left(machine: Machine, daemon: Daemon) -> Iterator[None]:
    before = daemon.descriptors()
    yield
    until(lambda: not daemon.networks(), "end of the networks")
    until(lambda: not machine.processes("plugin/pasta"), "end of the shims")
    until(lambda: not daemon.descriptors() - before, f"descriptors of before: {daemon.descriptors() - before}")


def shell(machine: Machine, script: str, status: int = 0) -> str:
    return machine.run(["bash", "-c", PRELUDE + script], status=status)


def test_a_process_gets_the_hosts_network(machine: Machine) -> None:
    said = shell(machine, f"""
        $pasta --config-net {QUIET} --map-guest-addr 169.254.1.2 $N
        in_n ip -o addr; in_n ip link show eth0; in_n ip route; in_n ip -6 route
        in_n curl -s http://{WORLD}/; in_n ping -c1 -W2 {WORLD}""")  # fmt: skip
    assert f"inet {HOST}/24" in said and f"inet6 {HOST6}/64" in said and "tentative" not in said
    assert "mtu 65520" in said and f"default via {WORLD} dev eth0" in said and "default via fd77::1 dev eth0" in said
    assert f"you are {HOST} " in said and "1 received" in said


def test_a_command_runs_in_namespaces_of_its_own_and_its_status_comes_back(machine: Machine, daemon: Daemon) -> None:
    assert f"you are {HOST} " in shell(machine, f"$pasta --config-net {QUIET} -- curl -s http://{WORLD}/")
    said = shell(machine, f"$pasta --config-net {QUIET} -- sh -c 'id -u; hostname; ip -br addr; exit 7'", status=7)
    assert said.startswith("0\npasta-") and f"{HOST}/24" in said
    shell(machine, f"$pasta --config-net {QUIET} -- sh -c 'sleep 9 & kill -9 $!; wait $!'", status=137)
    shell(machine, f"$pasta --config-net {QUIET} -- /no/such/command", status=1)
    until(lambda: not daemon.networks(), "end of the networks")


def test_in_the_background_only_a_pid_file_keeps_a_process(machine: Machine, daemon: Daemon) -> None:
    said = shell(machine, f"""
        $pasta --config-net {QUIET} -I one $N; echo first $?
        $pasta --config-net {QUIET} -I two -P pasta.pid $N; echo second $?
        pid=$(cat pasta.pid); tr '\\0' ' ' </proc/$pid/cmdline; readlink /proc/$pid/fd/1 /proc/$pid/cwd
        in_n ip -br link
        kill $pid; soon gone $pid; soon sh -c "! nsenter -t $N -U -n --preserve-credentials ip link show two"
        in_n ip -br link; kill $N; echo ended""")  # fmt: skip
    assert "first 0" in said and "second 0" in said and "plugin/pasta" in said and "/dev/null" in said
    assert said.split("plugin/pasta")[1].count("two") == 2, "in the command line, in the list, and then no more"
    until(lambda: not daemon.networks(), "end of the first network with its process")


# Of a netd before Open could tell the path as well.
EARLIER = r"""
cp -R "${pasta%/*}" plugin; pasta=$PWD/plugin/pasta
grep -q 'step.get("real")' plugin/shim/main.py && sed -i 's/step.get("real")/None/' plugin/shim/main.py"""


@pytest.mark.parametrize("shim", ["", EARLIER], ids=["of now", "of an earlier netd"])
def test_a_path_as_podman_has_it_in_a_mount_namespace_of_its_own(machine: Machine, daemon: Daemon, shim: str) -> None:
    """An empty file from outside, whose unlink is seen there; the process that --pid names goes with it."""
    said = shell(machine, f"""{shim}
        touch ns; in_n mount --bind /proc/$N/ns/net $PWD/ns
        in_n $pasta --config-net {QUIET} --pid $PWD/pasta.pid --netns $PWD/ns; echo status $?
        in_n curl -s http://{WORLD}/; pid=$(cat pasta.pid)
        in_n umount $PWD/ns; rm ns; soon gone $pid && echo and it is gone""")  # fmt: skip
    assert "status 0" in said and f"you are {HOST} " in said and "and it is gone" in said
    until(lambda: not daemon.networks(), "end of the network")


# answer.py PROTOCOL and ask.py PROTOCOL ADDRESS PORT: the one tells the other how it is seen.
SCRIPTS = """
cat >answer.py <<E
import socket, sys
kind = socket.SOCK_STREAM if sys.argv[1] == "tcp" else socket.SOCK_DGRAM
s = socket.socket(socket.AF_INET6, kind)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
s.bind(("::", 6001))
if sys.argv[1] == "tcp":
    s.listen()
print("listening", flush=True)
for _ in range(4):
    if sys.argv[1] == "tcp":
        c, peer = s.accept()
        c.sendall(peer[0].replace("::ffff:", "").encode())
        c.close()
    else:
        _, peer = s.recvfrom(100)
        s.sendto(peer[0].replace("::ffff:", "").encode(), peer)
E
cat >ask.py <<E
import socket, sys
kind = socket.SOCK_STREAM if sys.argv[1] == "tcp" else socket.SOCK_DGRAM
s = socket.socket(socket.AF_INET6 if ":" in sys.argv[2] else socket.AF_INET, kind)
s.settimeout(5)
s.connect((sys.argv[2], int(sys.argv[3])))
s.send(b"who")
print("seen", s.recv(100).decode())
E
"""


@pytest.mark.parametrize(("protocol", "t", "u"), [("tcp", "t", "u"), ("udp", "u", "t")])
def test_a_published_range_on_both_families(machine: Machine, protocol: str, t: str, u: str) -> None:
    said = shell(machine, SCRIPTS + f"""
        $pasta --config-net --no-map-gw -{t} 5000-5001:6000-6001 -{u} none -T none -U none \\
            --map-guest-addr 169.254.1.2 --map-guest-addr fc00::2 $N
        (exec_n python3 $PWD/answer.py {protocol} >said) & soon grep listening said
        for to in {HOST} 127.0.0.1 {HOST6} ::1; do python3 ask.py {protocol} $to 5001; done""")  # fmt: skip
    seen = [line.removeprefix("seen ") for line in said.splitlines() if line.startswith("seen ")]
    assert seen == ["169.254.1.2", HOST, "fc00::2", HOST6], "by the host's own address, and by its loopback"


def test_log_capture_and_statistics(machine: Machine) -> None:
    said = shell(machine, f"""
        $pasta --config-net {QUIET} --log-file log --log-size 40960 --trace --pcap frames --pid pid $N
        in_n curl -s http://{WORLD}/; cat log; echo; od -An -tx1 -N4 frames
        $pasta -f --stats 1 --config-net {QUIET} -I two $N 2>stats & S=$!
        soon in_n ip addr show two; in_n ping -c1 -I two {WORLD} >/dev/null; sleep 1.2; cat stats; kill $S""")  # fmt: skip
    assert f"you are {HOST} " in said
    log, capture = said.split("\n d4 c3 b2 a1")
    assert "\npasta 20" in log and f"IPv4: address {HOST}, gateway {WORLD}" in log
    assert f"from guest: TCP {HOST}:" in log and "SYN" in log
    assert "rx_frames" in capture


def test_what_goes_wrong_is_said_with_status_1_and_leaves_nothing(machine: Machine, daemon: Daemon) -> None:
    for line, message in (
        ("--config-net 999999999", "Couldn't open network namespace /proc/999999999/ns/net: No such file or directory"),
        ("--config-net --netns nosuch", "Couldn't open network namespace /run/netns/nosuch: No such file"),
        ("--config-net --netns /etc/passwd", "Couldn't enter network namespace /etc/passwd: Invalid argument"),
        ("--config-net -i nosuch $N", "Invalid interface name nosuch: No such device"),
        ("--config-net --outbound-if4 nosuch $N", "External interface not usable"),
        ("--config-net --log-file /nosuch/log $N", "Couldn't open log file /nosuch/log: No such file or directory"),
        ("--config-net --pid /nosuch/pid $N", "Couldn't open PID file /nosuch/pid: No such file or directory"),
        ("--config-net --pcap /nosuch/f $N", "open /nosuch/f: No such file or directory"),
        ("--config-net -c /nosuch/s $N", "Couldn't listen on /nosuch/s: No such file or directory"),
        ("--config-net -t 198.51.100.9/80 $N", "Listen failed for HOST TCP port 198.51.100.9/80: Cannot assign"),
        ("--config-net --pid pid -t 22 $N", "Listen failed for HOST TCP port */22: Permission denied"),
        ("--nosuch $N", "unrecognized option '--nosuch'"),
    ):
        said = shell(machine, f"$pasta --no-map-gw {line}", status=1)
        assert message in said, (line, said)
    assert not daemon.networks()


def test_pesto_edits_the_ports_of_a_network_that_runs(machine: Machine) -> None:
    said = shell(machine, f"""
        $pasta --config-net {QUIET} -c $PWD/control --pid pid $N; echo made $?
        echo hello from inside >page; (exec_n busybox httpd -f -p 8000 -h $PWD) &
        soon in_n curl -s http://127.0.0.1:8000/page
        $pesto --add -t 127.0.0.1/5100:{HOST}/8000 -t '[::]/5101' control; echo added $?
        $pesto --add -t 127.0.0.1/5100:{HOST}/8000 control; echo again $?
        curl -s -m 5 http://127.0.0.1:5100/page; $pesto control
        $pesto --add -t 127.0.0.1/5102 -t 127.0.0.1/22 control; echo refused $?
        $pesto --delete -t 127.0.0.1/5100:{HOST}/8000 control; echo deleted $?
        curl -s -m 5 http://127.0.0.1:5100/; echo curl $?; $pesto control
        kill $(cat pid); soon test ! -e control && echo the socket is gone
        $pesto control; echo nobody $?""")  # fmt: skip
    for word in ("made 0", "added 0", "again 0", "refused 1", "deleted 0", "curl 7", "the socket is gone", "nobody 1"):
        assert word in said, word
    before, after = said.split("refused 1")
    assert f"TCP [127.0.0.1]:5100  =>  {HOST}:8000" in before and "TCP [::]:5101" in before
    assert "5102" not in after.split("deleted 0")[1] and "5100  =>" not in after and "[::]:5101" in after
    assert "hello from inside" in before


def test_ports_that_follow_who_listens(machine: Machine) -> None:
    """``-t auto -- python3 -m http.server``: the port appears on the host, and goes."""
    said = shell(machine, f"""
        mkdir -p www; echo hello >www/page; rm -f stop end
        $pasta --config-net --no-map-gw -t auto -u none -T none -U none -- sh -c '
            cd www; python3 -m http.server 8123 >/dev/null 2>&1 & while [ ! -e ../stop ]; do sleep .05; done
            kill $!; while [ ! -e ../end ]; do sleep .05; done; echo ending' & P=$!
        get() {{ curl -s -m2 http://127.0.0.1:8123/page; }}
        patiently() {{ for _ in $(seq 500); do "$@" && return; sleep .02; done; }}
        appeared() {{ get >/dev/null; }}; went() {{ [ -z "$(ss -Hltn 'sport = :8123')" ]; }}
        patiently appeared; get; curl -s http://{HOST}:8123/page
        touch stop; patiently went; get; echo curl $?
        touch end; wait $P; echo status $?""")  # fmt: skip
    assert said.split() == ["hello", "hello", "curl", "7", "ending", "status", "0"]


@pytest.mark.parametrize("spec", ["8124", "auto", "8000-8200,~8100", "8124:8124"])
def test_the_hosts_loopback_from_the_guests(machine: Machine, spec: str) -> None:
    said = shell(machine, f"""
        mkdir -p www; echo hello >www/page
        python3 -m http.server --bind 127.0.0.1 --directory www 8124 >/dev/null 2>&1 & soon curl -sf http://127.0.0.1:8124/page
        $pasta --config-net --no-map-gw -t none -u none -T {spec} -U none -- sh -c '
            curl -s http://127.0.0.1:8124/page; curl -s http://127.0.0.1:8201/; echo $?'
        """)  # fmt: skip
    assert said.split() == ["hello", "7"]


def test_loopback_to_loopback(machine: Machine) -> None:
    """--host-lo-to-ns-lo: what listens on the guest's loopback alone is reached from the host's, and only from there."""
    script = "mkdir -p www; echo hello >www/page; cd www; python3 -m http.server --bind 127.0.0.1 8000"
    said = shell(machine, f"""
        $pasta --config-net --no-map-gw --host-lo-to-ns-lo -t 8126:8000 -u none -T none -U none -- sh -c '
            {script} >/dev/null 2>&1 & sleep 2' & P=$!
        soon curl -sf http://127.0.0.1:8126/page; curl -s http://127.0.0.1:8126/page
        curl -s -m2 http://{HOST}:8126/page; echo $?; wait $P
        $pasta --config-net --no-map-gw -t 8126:8000 -u none -T none -U none -- sh -c '
            {script} >/dev/null 2>&1 & sleep 2' & P=$!
        sleep 1; curl -s -m2 http://127.0.0.1:8126/page; echo $?; wait $P""")  # fmt: skip
    hello, outside, without = said.split()
    assert hello == "hello" and {outside, without} <= {"7", "52", "56"}, "refused, or reset"
