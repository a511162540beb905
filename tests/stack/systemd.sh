#!/usr/bin/env bash
# Starts and stops systemd as PID 1 in a container of our docker engine (tests/stack/docker.sh), for the tests: its
# system bus is reachable from the host as $PROCTOR_STACK/systemd-bus/system_bus_socket.
#
#   tests/stack/systemd.sh start|stop
#
# The root file system is made once by debootstrap (a minute) and kept as $PROCTOR_STACK/systemd-root.tar.
set -euo pipefail
stack=${PROCTOR_STACK:-/tmp/proctor-stack}
here=$(cd "$(dirname "$0")" && pwd)
name=proctor-systemd
bus=$stack/systemd-bus
export DOCKER_HOST=unix://$stack/docker.sock

say() { printf 'systemd: %s\n' "$*"; }
up() { # "degraded" is up too: one of its units may not work in a container
    case "$(timeout 10 docker exec $name systemctl is-system-running 2>/dev/null || true)" in running | degraded) [ -S "$bus/system_bus_socket" ] ;; *) false ;; esac
}

image() {
    docker image inspect $name >/dev/null 2>&1 && return
    if ! [ -e "$stack/systemd-root.tar" ]; then
        command -v debootstrap >/dev/null || { say "debootstrap is not installed: apt-get install debootstrap"; exit 1; }
        say "making its root file system (a minute)"
        local root
        root=$(mktemp -d "$stack/systemd-root.XXXXXX")
        chmod 755 "$root"
        debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,libpam-systemd,policykit-1,nginx bookworm "$root" >"$stack/log/debootstrap.log" 2>&1 ||
            { tail -n 20 "$stack/log/debootstrap.log"; rm -rf "$root"; exit 1; }
        rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
        tar -C "$root" -cf "$stack/systemd-root.tar.new" . && mv "$stack/systemd-root.tar.new" "$stack/systemd-root.tar"
        rm -rf "$root"
    fi
    docker import "$stack/systemd-root.tar" $name >/dev/null
}

unit() { # unit NAME LINES…: a unit of the tests
    local file=/etc/systemd/system/$1
    shift
    printf '%s\n' "$@" | docker exec -i $name sh -c "cat >$file"
}

units() { # one for each way in which a restart can go
    unit proctor-well.service '[Service]' 'ExecStart=/bin/sleep infinity'
    unit proctor-other.service '[Service]' 'ExecStart=/bin/sleep infinity'
    unit proctor-fails.service '[Service]' 'Type=oneshot' 'RemainAfterExit=yes' 'ExecStart=/bin/sh -c "exit 3"'
    unit proctor-crashes.service '[Service]' 'ExecStart=/bin/sh -c "sleep 0.3; exit 4"'
    unit proctor-limited.service '[Unit]' 'StartLimitBurst=1' 'StartLimitIntervalSec=1h' '[Service]' 'ExecStart=/bin/sleep infinity'
    unit proctor-slow.service '[Service]' 'Type=oneshot' 'ExecStart=/bin/sleep 3600' 'TimeoutStartSec=infinity'
    unit proctor-repair.service '[Service]' 'Type=oneshot' 'ExecStart=/bin/true'
    docker exec $name sh -c 'ln -sf /dev/null /etc/systemd/system/proctor-masked.service && systemctl daemon-reload'
}

start() {
    mkdir -p "$stack/log"
    bash "$here/docker.sh" start
    exec 9>"$stack/systemd.lock"
    flock 9
    if ! up; then
        image
        docker rm -f -v $name >/dev/null 2>&1 || true
        rm -rf "$bus" && mkdir -p "$bus"
        docker run -d --name $name --network none --cap-add SYS_ADMIN --security-opt seccomp=unconfined --security-opt apparmor=unconfined \
            --cgroupns host --tmpfs /run --tmpfs /run/lock -v /sys/fs/cgroup:/sys/fs/cgroup:rw -v "$bus:/run/dbus" -e container=docker \
            $name /lib/systemd/systemd >/dev/null
        for _ in $(seq 120); do up && break; sleep 0.5; done
        up || { say "does not come up:"; docker logs $name 2>&1 | tail -n 20; docker exec $name systemctl --no-pager --failed 2>&1 || true; exit 1; }
        units
    fi
    say "its bus is $bus/system_bus_socket"
}

stop() {
    if [ -S "$stack/docker.sock" ]; then docker rm -f -v $name >/dev/null 2>&1 || true; fi
    rm -rf "$bus"
    # What systemd made in the cgroups of the host ends with it, but for empty folders.
    say "stopped"
}

case "${1:-}" in
start) start ;;
stop) stop ;;
*) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
