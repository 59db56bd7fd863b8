# As a user with a service manager, a netd.service that runs, Podman 5 and IMAGE ($1): a unit's container starts the
# network command of a bridge; the unit is stopped, and the other container's network stays (250-systemd.bats). Then a
# unit with a published port, and the service's own restarts. Prints "ok WHAT" for each; stops at the first failure.
set -eu
image=$1
clean() {
    systemctl --user stop netd-c1 netd-c3 2>/dev/null || true
    podman rm -fa -t0 >/dev/null 2>&1 || podman rm -fa -t0 >/dev/null
    podman network rm -f netd-n1 >/dev/null
    systemctl --user reset-failed
}
soon() { for _ in $(seq 100); do "$@" >/dev/null 2>&1 && return; sleep .1; done; echo "not soon: $*"; exit 1; }
page() { curl -sf -m 5 "http://127.0.0.1:$1/passwd" | grep -q root; }
clean
trap clean EXIT

podman network create netd-n1 >/dev/null
systemd-run --user --quiet --unit=netd-c1 podman run --rm --name netd-c1 --network netd-n1 "$image" sleep 1000
soon podman exec netd-c1 true
podman run -d --name netd-c2 --network netd-n1 -p 9700:80 "$image" busybox httpd -f -p 80 -h /etc >/dev/null
pid=$(cat "$XDG_RUNTIME_DIR"/containers/networks/rootless-netns/*.pid)
systemctl --user stop netd-c1
kill -0 "$pid" && echo "ok the command outlives the unit"
podman exec netd-c2 nslookup google.com >/dev/null && echo "ok names"
podman unshare --rootless-netns ip -o -4 addr show scope global | grep -vq podman && echo "ok the interface"
soon page 9700 && echo "ok a published port of the bridge"
podman rm -f -t0 netd-c2 >/dev/null

systemd-run --user --quiet --unit=netd-c3 -p KillMode=mixed -p ExecStop="/usr/bin/podman rm -f -t0 netd-c3" \
    podman run --rm --name netd-c3 -p 9701:80 "$image" busybox httpd -f -p 80 -h /etc
soon page 9701 && echo "ok a unit's published port"
systemctl --user stop netd-c3
podman run -d --name netd-c4 -p 9701:80 "$image" busybox httpd -f -p 80 -h /etc >/dev/null
soon page 9701 && echo "ok the port is the next one's"
systemctl --user restart netd.service
soon page 9701 && echo "ok after a restart"
systemctl --user kill -s KILL netd.service
soon page 9701 && echo "ok after kill -9"
podman exec netd-c4 nslookup google.com >/dev/null && echo "ok names after that"
