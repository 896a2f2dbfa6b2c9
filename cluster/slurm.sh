#!/usr/bin/env bash
# A SLURM cluster on this machine, to try sweeps on: one controller, one node, all under the user who calls.
#   cluster/slurm.sh up      start it (once; a running one is left alone) and print the line that points clients to it
#   cluster/slurm.sh down    stop it and its jobs; its files go, logs of jobs stay
#   cluster/slurm.sh env     the line again
# Needs the Debian packages slurm-wlm and munge. Everything lives in CLUSTER_DIR (default: .cluster in the clone).
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
dir=${CLUSTER_DIR:-$root/.cluster}
conf=$dir/slurm.conf
PATH=$PATH:/usr/sbin

need() {
    for program in munged slurmctld slurmd scontrol; do
        command -v "$program" >/dev/null ||
            { echo "$program is not installed; install the packages slurm-wlm and munge (apt-get install slurm-wlm munge)" >&2; exit 1; }
    done
}

alive() { [ -s "$dir/$1.pid" ] && [ "$(cat "/proc/$(cat "$dir/$1.pid")/comm" 2>/dev/null)" = "$1" ]; }

free_ports() { # two ports that nobody listens on
    python3 -c "import socket as s; a = [s.create_server(('127.0.0.1', 0)) for _ in 'ab']; print(*(x.getsockname()[1] for x in a))"
}

write_conf() {
    local host cores memory controller node first
    host=$(hostname -s)
    cores=$(nproc)
    memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
    read -r controller node < <(free_ports)
    first=$((10#$(date +%s%N) / 10000000 % 60000000 + 1)) # two clusters, or one begun anew, never share a job's folder of logs
    sed -e "s|@dir@|$dir|g; s|@host@|$host|g; s|@user@|$(id -un)|g; s|@cores@|$cores|g; s|@memory@|$memory|g" \
        -e "s|@controller@|$controller|g; s|@node@|$node|g; s|@share@|$((memory / cores))|g; s|@first@|$first|g" "$root/cluster/slurm.conf.in" >"$conf"
}

up() {
    need
    export SLURM_CONF=$conf
    if [ -s "$conf" ] && scontrol ping 2>/dev/null | grep -q 'is UP'; then env_line; return; fi
    mkdir -p "$dir/state" "$dir/spool" "$dir/munge" && chmod 700 "$dir/munge"
    [ -s "$dir/munge/key" ] || { dd if=/dev/urandom of="$dir/munge/key" bs=128 count=1 status=none; chmod 600 "$dir/munge/key"; }
    write_conf
    alive munged || munged --force --key-file="$dir/munge/key" --socket="$dir/munge/socket" --pid-file="$dir/munged.pid" \
        --log-file="$dir/munge/log" --seed-file="$dir/munge/seed"
    slurmctld -c -f "$conf"
    slurmd -f "$conf"
    for _ in $(seq 100); do
        case $(sinfo -h -o %T 2>/dev/null) in idle | mixed | allocated) env_line; return ;; esac
        sleep 0.1
    done
    echo "the node did not come up in 10 s:" >&2
    tail -n 5 "$dir/slurmctld.log" "$dir/slurmd.log" >&2
    exit 1
}

down() {
    [ -s "$conf" ] || { [ ! -e "$dir" ] || echo "$dir holds no cluster; nothing was stopped or removed" >&2; return; }
    if alive slurmctld; then
        SLURM_CONF=$conf scancel --quiet --user="$(id -un)" || true
        for _ in $(seq 100); do [ -n "$(SLURM_CONF=$conf squeue -h 2>/dev/null)" ] || break; sleep 0.1; done
    fi
    for daemon in slurmd slurmctld munged; do
        if alive "$daemon"; then
            pid=$(cat "$dir/$daemon.pid")
            kill "$pid"
            for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
        fi
    done
    rm -rf "$dir"
}

env_line() { echo "export SLURM_CONF=$conf"; }

case ${1:-} in
up) up ;;
down) down ;;
env) env_line ;;
*) sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
