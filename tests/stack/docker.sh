#!/usr/bin/env bash
# Starts and stops a docker engine of our own for the tests: its socket, data and pid file lie in $PROCTOR_STACK, and it
# touches neither bridges nor iptables, so that it can run beside another engine. Needs root and Debian's docker.io.
#
#   tests/stack/docker.sh start|stop
#
# The image `proctor-busybox` is a static busybox of the host: no registry is asked.
set -euo pipefail
stack=${PROCTOR_STACK:-/tmp/proctor-stack}
sock=$stack/docker.sock
export DOCKER_HOST=unix://$sock

say() { printf 'docker: %s\n' "$*"; }
answers() { [ -S "$sock" ] && timeout 10 docker info >/dev/null 2>&1; }
pid() { cat "$stack/docker.pid" 2>/dev/null || true; }
# A pid file may outlive its process, and the number may belong to another by now.
alive() { [ -n "$(pid)" ] && [ "$(cat "/proc/$(pid)/comm" 2>/dev/null)" = dockerd ]; }

engine() { # engine STORAGE-DRIVER: starts it and waits
    mkdir -p "$stack/docker/data-$1" "$stack/docker/exec" "$stack/log"
    alive || rm -f "$stack/docker.pid" "$stack/docker/exec/containerd/containerd.pid"
    setsid dockerd --host "$DOCKER_HOST" --data-root "$stack/docker/data-$1" --exec-root "$stack/docker/exec" --pidfile "$stack/docker.pid" \
        --storage-driver "$1" --bridge none --iptables=false --ip6tables=false >"$stack/log/dockerd.log" 2>&1 </dev/null &
    for _ in $(seq 120); do
        if answers; then return 0; fi
        sleep 0.5
        kill -0 $! 2>/dev/null || return 1
    done
    return 1
}

start() {
    mkdir -p "$stack"
    # Two starts at once would start two engines on one folder.
    exec 9>"$stack/docker.lock"
    flock 9
    if ! answers; then
        command -v dockerd >/dev/null || { say "dockerd is not installed: apt-get install docker.io"; exit 1; }
        halt
        # On some file systems overlayfs cannot lie upon itself; vfs copies, and always works.
        { engine overlay2 9>&- || { halt; engine vfs 9>&-; }; } || { say "dockerd does not start:"; tail -n 20 "$stack/log/dockerd.log"; exit 1; }
    fi
    if ! docker image inspect proctor-busybox >/dev/null 2>&1; then
        local root
        root=$(mktemp -d "$stack/busybox.XXXXXX")
        mkdir -p "$root/bin" "$root/tmp" && cp /bin/busybox "$root/bin/" && ln -s busybox "$root/bin/sh" && ln -s busybox "$root/bin/sleep"
        tar -C "$root" -c . | docker import - proctor-busybox >/dev/null
        rm -rf "$root"
    fi
    say "listens on $sock"
}

halt() { # ends the engine and what a killed one left behind; the data stay, so that the next start is quick
    if answers; then docker ps -aq | xargs -r docker rm -f -v >/dev/null; fi
    if alive; then
        local p
        p=$(pid)
        kill "$p"
        for _ in $(seq 60); do [ -d "/proc/$p" ] || break; sleep 0.5; done
        kill -9 "$p" 2>/dev/null || true
    fi
    # Only containerd and its shims, and only those of this folder.
    local child
    for child in $(pgrep containerd || true); do
        if tr '\0' ' ' 2>/dev/null <"/proc/$child/cmdline" | grep -qF -- "$stack/docker/exec/"; then kill -9 "$child" 2>/dev/null || true; fi
    done
    awk -v s="$stack/docker/" 'index($2, s) == 1 { print $2 }' /proc/mounts | sort -r | while read -r mount; do umount -l "$mount" || true; done
    rm -rf "$sock" "$stack/docker.pid" "$stack/docker/exec"
}

case "${1:-}" in
start) start ;;
stop) halt && say "stopped" ;;
*) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
