#!/usr/bin/env bash
# A Slurm cluster of two nodes on one Debian machine, for tests and for a first look: no systemd, nothing in /etc.
#
# Each node is a network namespace with its own address; slurmctld runs beside them, on the bridge that joins them.
# `sbatch` and `squeue` work from the machine itself once SLURM_CONF is set, which `up` prints. All state lies in one
# folder, and every daemon is stopped by the number in its own file.
#
# Usage:  sudo scripts/cluster-debian.sh up            install what is missing, start, wait until both nodes are idle
#         sudo scripts/cluster-debian.sh down          stop everything and remove the folder
#         scripts/cluster-debian.sh status             one line; `scripts/cluster-debian.sh env` prints the export
#         sudo scripts/cluster-debian.sh start|stop NAME   one daemon: ctld, node1 or node2
#         sudo scripts/cluster-debian.sh cut|join node1|node2   its network cable
#         scripts/cluster-debian.sh claim          print an id of 1 … 250 that no other cluster here has, and keep it
# Settings: CLUSTER_ID=0, up to 250: clusters of different ids run side by side  NODES=2  NODE_CPUS (all)
#           CLUSTER_DIR=/run/quantyard-cluster, with -ID where that is not 0  NODE_MEMORY_MB (half of the machine's)
# Exit codes:  0 done · 1 a step failed, or `status` finds no cluster · 2 wrong usage
set -euo pipefail

ID=${CLUSTER_ID:-0}
[[ $ID =~ ^[0-9]{1,3}$ ]] && ((ID <= 250)) || { echo "CLUSTER_ID=$ID is not a number of 0 … 250." >&2; exit 2; }
CLAIMS=/run/quantyard-cluster
DIR=${CLUSTER_DIR:-$CLAIMS$([[ $ID == 0 ]] || echo "-$ID")}
BRIDGE=qycluster$ID
CABLE=qyv$ID- # and the number of the node
NAMESPACE=qynode$ID-
NET=10.87.$ID
N=${NODES:-2}
CPUS=${NODE_CPUS:-$(nproc)}
MEMORY_MB=${NODE_MEMORY_MB:-$(awk '/MemTotal/ { print int($2 / 2048) }' /proc/meminfo)}
WAIT_S=30
export SLURM_CONF=$DIR/slurm.conf

say() { echo "$*" >&2; }
die() { say "$*"; exit 1; }
needs_root() { [[ $EUID -eq 0 ]] || die "Namespaces need root. Type: sudo scripts/cluster-debian.sh $1"; }

main() {
    case ${1-} in
        up) needs_root up && up ;;
        down) needs_root down && down && say "The cluster is gone." ;;
        status) status ;;
        env) echo "export SLURM_CONF=$SLURM_CONF" ;;
        start | stop) needs_root "$1" && "$1_daemon" "${2:?}" ;;
        cut) needs_root cut && ip link set "$CABLE${2#node}" down ;;
        join) needs_root join && ip link set "$CABLE${2#node}" up ;;
        claim) needs_root claim && claim ;;
        *) say "Usage: scripts/cluster-debian.sh up|down|status|env|claim|start NAME|stop NAME|cut NODE|join NODE"; exit 2 ;;
    esac
}

# Its folder is the claim, which `down` gives back.
claim() {
    local id
    for id in $(seq 250); do
        if [[ ! -e /sys/class/net/qycluster$id ]] && mkdir "$CLAIMS-$id" 2>/dev/null; then
            echo "$id"
            return
        fi
    done
    die "All 250 ids are taken. See which clusters are up: ls -d $CLAIMS-*"
}

up() {
    if (status) 2>/dev/null; then
        return
    fi
    install_packages
    stop_all
    mkdir -p "$DIR"/{state,log,pid}
    write_configuration
    start_munge
    start_daemon ctld -c # forgets any earlier state
    ip link add "$BRIDGE" type bridge
    ip addr add "$NET.1/24" dev "$BRIDGE"
    ip link set "$BRIDGE" up
    local n
    for n in $(seq "$N"); do
        add_namespace "$n"
        start_daemon "node$n"
    done
    wait_until_idle
    say "Slurm $(slurmctld -V | cut -d' ' -f2) with $N nodes is up. Next, in this shell:"
    echo "export SLURM_CONF=$SLURM_CONF"
}

install_packages() {
    local missing=() program
    for program in slurmctld slurmd sbatch munged; do
        command -v $program >/dev/null || missing=(slurm-wlm munge iproute2 util-linux)
    done
    ((${#missing[@]})) || return 0
    command -v apt-get >/dev/null || die "slurmctld, slurmd, sbatch or munged is not installed, and this is not Debian. Install slurm-wlm and munge, then type: sudo scripts/cluster-debian.sh up"
    say "Installing ${missing[*]} …"
    export DEBIAN_FRONTEND=noninteractive
    { apt-get -y -qq update && apt-get -y -qq install --no-install-recommends "${missing[@]}"; } >/dev/null 2>&1 </dev/null ||
        die "apt-get install ${missing[*]} failed. Check the network, then type: sudo scripts/cluster-debian.sh up"
}

# The user is root, so that no account is made. Processes are tracked by their parents and memory is sampled: what a
# container allows. A node counts as lost after 20 s without an answer.
write_configuration() {
    cat >"$SLURM_CONF" <<CONF
ClusterName=quantyard$ID
SlurmctldHost=$(hostname)($NET.1)
SlurmctldPort=$((17000 + ID))
SlurmdPort=16818
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket=$DIR/munge.socket
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool-%n
SlurmctldPidFile=$DIR/pid/ctld
SlurmdPidFile=$DIR/pid/%n
SlurmctldLogFile=$DIR/log/ctld
SlurmdLogFile=$DIR/log/%n
SlurmctldDebug=info
SlurmdDebug=info
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=5
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=5,sched_interval=5,batch_sched_delay=0,sched_min_interval=100000
SlurmdTimeout=20
SlurmctldTimeout=20
MinJobAge=300
KillWait=5
ReturnToService=2
SlurmdParameters=config_overrides
GresTypes=gpu
$(for n in $(seq "$N"); do echo "NodeName=node$n NodeAddr=$NET.$((n + 10)) CPUs=$CPUS RealMemory=$MEMORY_MB Gres=gpu:1 Features=rack$n State=UNKNOWN"; done)
PartitionName=short Nodes=node[1-$N] MaxTime=60 State=UP
PartitionName=main Nodes=node[1-$N] Default=YES MaxTime=INFINITE State=UP
CONF
    echo "NodeName=node[1-$N] Name=gpu File=/dev/null" >"$DIR/gres.conf" # counted; no program uses it
}

start_munge() {
    local run="$DIR/munge"
    mkdir -p -m 700 "$run"
    [[ -f $run/key ]] || (umask 077 && head -c 1024 /dev/urandom >"$run/key")
    chmod 755 "$DIR"
    munged --force --socket="$DIR/munge.socket" --key-file="$run/key" --log-file="$DIR/log/munge" \
        --pid-file="$DIR/pid/munge" --seed-file="$run/seed" || die "munged did not start. Look: $DIR/log/munge"
}

# nsenter, since `ip netns exec` mounts /sys anew and hides the cgroups that slurmd looks for.
add_namespace() {
    ip netns add "$NAMESPACE$1"
    ip link add "$CABLE$1" type veth peer name eth0 netns "$NAMESPACE$1"
    ip link set "$CABLE$1" master "$BRIDGE" up
    in_node "$1" ip link set lo up
    in_node "$1" ip addr add "$NET.$(($1 + 10))/24" dev eth0
    in_node "$1" ip link set eth0 up
}

in_node() {
    local n=$1
    shift
    nsenter --net="/run/netns/$NAMESPACE$n" -- "$@"
}

start_daemon() {
    case $1 in
        ctld) slurmctld -f "$SLURM_CONF" "${@:2}" ;;
        node*) # with mounts of its own too, so that a test can fill or forbid a folder of one node
            mkdir -p "$DIR/spool-$1"
            in_node "${1#node}" unshare --mount --propagation slave slurmd -N "$1" -f "$SLURM_CONF"
            ;;
        *) say "$1 is not ctld or node1 …"; exit 2 ;;
    esac >>"$DIR/log/start" 2>&1 || { tail -n 5 "$DIR/log/start" >&2; die "$1 did not start. Look: $DIR/log/$1"; }
}

# Stop what a pid file names, if that number is still one of ours; SIGKILL after 5 s.
stop_daemon() {
    local file="$DIR/pid/$1" pid end=$((SECONDS + 5))
    [[ -f $file ]] || return 0
    pid=$(<"$file")
    if grep -qsE '^(slurmctld|slurmd|munged)$' "/proc/$pid/comm"; then
        kill "$pid" 2>/dev/null || true
        while [[ -d /proc/$pid ]] && ((SECONDS < end)); do sleep 0.05; done
        [[ ! -d /proc/$pid ]] || kill -9 "$pid" 2>/dev/null || true
    fi
    rm -f "$file"
}

down() {
    stop_all
    rm -rf "$DIR"
}

stop_all() {
    local file name
    stop_jobs
    for file in "$DIR"/pid/node*; do
        stop_daemon "${file##*/}"
    done
    stop_daemon ctld
    stop_daemon munge
    for file in "/run/netns/$NAMESPACE"*; do
        name=${file##*/}
        [[ ! -e $file ]] || ip netns del "$name"
        ip link del "$CABLE${name#"$NAMESPACE"}" 2>/dev/null || true # it may have gone with its namespace
    done
    [[ ! -e /sys/class/net/$BRIDGE ]] || ip link del "$BRIDGE"
    rm -rf "${DIR:?}"/*
}

# Jobs outlive slurmd on purpose, so they are cancelled first; a step that is left is found by its socket's folder.
stop_jobs() {
    [[ -f $DIR/pid/ctld ]] || return 0
    timeout 5 scancel --state=RUNNING --user=root 2>/dev/null || true
    timeout 5 scancel --user=root 2>/dev/null || true
    local end=$((SECONDS + 8))
    while ((SECONDS < end)) && [[ -n $(timeout 5 squeue -h 2>/dev/null) ]]; do sleep 0.2; done
}

wait_until_idle() {
    local end=$((SECONDS + WAIT_S))
    until (($(timeout 5 sinfo -h -N -t idle -o %N 2>/dev/null | sort -u | wc -l) == N)); do
        ((SECONDS < end)) || { sinfo >&2 || true; die "The nodes are not idle after $WAIT_S s. Look: $DIR/log"; }
        sleep 0.1
    done
}

status() {
    [[ -f $SLURM_CONF ]] || die "No cluster is up in $DIR. Type: sudo scripts/cluster-debian.sh up"
    local nodes
    nodes=$(timeout 5 sinfo -h -N -o "%N %t" 2>/dev/null | sort -u) || die "slurmctld does not answer. Type: sudo scripts/cluster-debian.sh up"
    say "$(tr '\n' ',' <<<"$nodes" | sed 's/,$//; s/,/, /g')"
    echo "export SLURM_CONF=$SLURM_CONF"
}

main "$@"
