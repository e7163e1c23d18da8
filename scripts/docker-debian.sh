#!/usr/bin/env bash
# Install and start Docker Engine on a Debian 12 machine.
#
# Debian 12's own engine is too old for its buildx and compose, so four packages (and nothing else: a pin
# sees to that) come from Debian 13; containerd, runc and libc stay Debian 12's. Does nothing when a daemon answers.
#
# Usage:  sudo scripts/docker-debian.sh            install what is missing, start dockerd, wait for it
#         scripts/docker-debian.sh --check         only say how things stand
# Exit codes:  0 a daemon answers · 1 it does not (with --check), or a step failed · 2 wrong usage
set -euo pipefail

PACKAGES="docker.io docker-cli docker-buildx docker-compose"
SOURCES=/etc/apt/sources.list.d/trixie-docker.sources
PIN=/etc/apt/preferences.d/trixie-docker
LOG=/var/log/dockerd.log
WAIT_S=30

say() { echo "$*" >&2; }
die() { say "$*"; exit 1; }
daemon_version() { # not `docker info`: some clients end it with 0 although no daemon answers
    timeout 10 docker version --format '{{.Server.Version}}' 2>/dev/null
}

main() {
    case ${1-} in
        "" | --check) ;;
        *) say "Unknown option '$1'. Usage: scripts/docker-debian.sh [--check]"; exit 2 ;;
    esac
    local version
    if version=$(daemon_version); then
        say "Docker $version answers; nothing to do."
        exit 0
    fi
    [[ -z ${DOCKER_HOST-} ]] || die "No daemon answers at DOCKER_HOST=$DOCKER_HOST. Start it there, or type: unset DOCKER_HOST"
    if [[ ${1-} == --check ]]; then
        command -v dockerd >/dev/null || die "Docker Engine is not installed. Type: sudo scripts/docker-debian.sh"
        die "Docker Engine is installed, but no daemon answers. Type: sudo scripts/docker-debian.sh"
    fi
    [[ $EUID -eq 0 ]] || die "Installing and starting Docker needs root. Type: sudo scripts/docker-debian.sh"
    install_engine
    start_daemon
    wait_for_daemon
}

install_engine() {
    if command -v dockerd >/dev/null && docker buildx version >/dev/null 2>&1 && docker compose version >/dev/null 2>&1; then
        return
    fi
    local release
    # shellcheck source=/dev/null
    release=$(. /etc/os-release && echo "${ID-} ${VERSION_ID-}")
    [[ $release == "debian 12" ]] ||
        die "This script knows Debian 12, and this is '$release'. Install Docker Engine as its documentation says, then type: make doctor"
    export DEBIAN_FRONTEND=noninteractive
    say "Installing Debian 12's docker.io and iptables (for containerd and runc) …"
    apt_get update
    apt_get install docker.io iptables
    write_apt_files
    say "Installing $PACKAGES from Debian 13 …"
    apt_get update
    # shellcheck disable=SC2086  # one word per package
    apt_get install $PACKAGES
}

# Quiet unless it fails; then its own last words and ours.
apt_get() {
    local verb=$1 output
    shift
    output=$(apt-get -y -qq --no-install-recommends "$verb" "$@" 2>&1 </dev/null) || {
        tail -n 5 <<<"$output" >&2
        die "apt-get $verb failed, as said above. Check /etc/apt and the network, then type: sudo scripts/docker-debian.sh"
    }
}

# The mirror and its key are those this machine already trusts for Debian 12; apt itself reads both formats.
write_apt_files() {
    local entry uri file signed_by
    # shellcheck disable=SC2016  # the fields are apt's, not the shell's
    entry=$(apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI) $(SOURCESENTRY)' 'Created-By: Packages' |
        awk '($1 == "bookworm" || $1 == "oldstable") && $2 == "main" { print $3, $4; exit }')
    [[ -n $entry ]] || die "apt has no source for Debian 12 (bookworm main). Add one below /etc/apt, then type: sudo scripts/docker-debian.sh"
    read -r uri file <<<"$entry"
    signed_by=$(grep -ioPm1 'signed-by[:=]\s*\K/[^] ,]+' "${file%:*}" || echo /usr/share/keyrings/debian-archive-keyring.gpg)
    printf '%s\n' "Types: deb" "URIs: $uri" "Suites: trixie" "Components: main" "Signed-By: $signed_by" >"$SOURCES"
    printf '%s\n' "# Nothing from Debian 13 …" "Package: *" "Pin: release n=trixie" "Pin-Priority: -10" "" \
        "# … but these." "Package: $PACKAGES" "Pin: release n=trixie" "Pin-Priority: 990" >"$PIN"
}

start_daemon() {
    if [[ -d /run/systemd/system ]]; then
        say "Starting docker.service …"
        systemctl enable --now --quiet docker || die "systemd could not start docker.service. Look: journalctl -u docker -n 20"
    else
        forget_dead_daemon
        say "Starting dockerd in the background (log: $LOG) …"
        setsid dockerd >>"$LOG" 2>&1 </dev/null &
    fi
}

# A daemon that was killed leaves its number behind. If another process has that number by now, dockerd would
# take it for itself still running, and refuse to start.
forget_dead_daemon() {
    local file
    for file in /var/run/docker.pid /var/run/docker/containerd/containerd.pid; do
        [[ ! -f $file ]] || grep -qsE '^(dockerd|containerd)$' "/proc/$(cat "$file")/comm" || rm -f "$file"
    done
}

wait_for_daemon() {
    local version end=$((SECONDS + WAIT_S))
    until version=$(daemon_version); do
        if ((SECONDS >= end)); then
            [[ ! -s $LOG ]] || tail -n 5 "$LOG" >&2
            die "dockerd did not answer within $WAIT_S s. Look: $LOG, or journalctl -u docker; then type: sudo scripts/docker-debian.sh"
        fi
        sleep 0.3
    done
    docker buildx version >/dev/null 2>&1 ||
        die "Docker $version answers, but $(command -v docker) finds no buildx. Type: apt-get install --reinstall docker-buildx"
    say "Docker $version answers. Next: make doctor"
}

main "$@"
