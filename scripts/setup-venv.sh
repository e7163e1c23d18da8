#!/usr/bin/env bash
# Make a virtual environment that holds one lock (locks/*.txt: every package with its hash), once.
#
# .ready inside it names the groups that are complete and the hash of what they were made from, so a second call
# returns at once. It is removed before a change and written last: an environment whose set-up was
# interrupted does not count, and is made anew. Two calls at a time are safe: one waits.
#
# Usage:  scripts/setup-venv.sh quantyard|s3|kubernetes|test|lint|client|clients|oldclients|docs|openvino|lock [VENV]     VENV: .venv by default
#         PYTHON=python3.12 scripts/setup-venv.sh test        that interpreter in place of python3
#         INSTALLER=pip scripts/setup-venv.sh test            never uv (scripts/uv.sh), which keeps unpacked wheels in ~/.cache/uv
# Exit codes:  0 ready · 1 a step failed · 2 wrong usage
# Also sourced by setup-local.sh, for ensure_venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

again="then type: $0${*:+ $*}"
# pip has a name of its own for the CA of a proxy that inspects TLS.
[[ -z ${EXTRA_CA-} || -n ${PIP_CERT-} ]] || export PIP_CERT=$EXTRA_CA

# shellcheck source=scripts/uv.sh
source scripts/uv.sh
say() { echo "$*" >&2; }
die() { say "$*"; exit 1; }
before_install() { :; } # these are for setup-local.sh to replace; they run under the lock, with $venv set
after_install() { :; }
more_inputs() { :; }
made_with() { :; } # lines of .ready that tell what no input does
install_lock() { install -r "locks/$group.txt"; }

# ensure_venv VENV GROUP: GROUP names the lock
ensure_venv() {
    local venv=$1 group=$2 hash ready=""
    hash=$(inputs_hash "$group")
    is_ready && return
    # Of a link, the folder that it points to would be emptied.
    [[ ! -L $venv ]] || die "$venv is a link to $(readlink "$venv"), and is not ready here. Remove it: rm $venv; $again"
    check_python
    mkdir -p "$venv"
    take_lock
    is_ready && return # another process has done it while we waited for the lock
    [[ ! -s $venv/.ready ]] || ready=$(still_ready)
    before_install
    use_uv || uv=""
    if ! is_usable; then
        say "Making $venv …"
        ready=""
        "${PYTHON:-python3}" -m venv ${uv:+--without-pip} --clear "$venv" >&2 ||
            die "$venv could not be made, as said above. On Debian or Ubuntu type: sudo apt-get install python3-venv; $again"
    fi
    rm -f "$venv/.ready"
    install -r locks/pip.txt
    say "Installing locks/$group.txt into $venv …"
    install_lock
    after_install
    { [[ -z $ready ]] || grep -v "^$group " <<<"$ready" || true; echo "$group $hash"; made_with; } >"$venv/.ready.new"
    mv "$venv/.ready.new" "$venv/.ready"
    say "$venv is ready ($group)."
}

# Complete once, in this place (its programs name their interpreter by its path), and with a pip that starts.
is_usable() {
    local made_as
    [[ -f $venv/.ready && -x $venv/bin/python && -f $venv/pyvenv.cfg ]] || return 1
    made_as=$(sed -n 's/^command = .* --clear //p' "$venv/pyvenv.cfg")
    [[ $made_as -ef $venv ]] && "$venv/bin/python" -m pip --version >/dev/null 2>&1
}

# Only what decides the content, so that a change of the lint settings reinstalls nothing. The place counts
# too: a virtual environment does not survive being moved.
inputs_hash() { # GROUP
    {
        pwd
        cat "locks/$1.txt" locks/pip.txt scripts/setup-venv.sh scripts/uv.sh
        more_inputs
    } | sha256
}

# The lines of .ready whose groups have not changed since.
still_ready() {
    local name was
    while read -r name was; do
        if [[ -f locks/$name.txt && $(inputs_hash "$name") == "$was" ]]; then echo "$name $was"; fi
    done <"$venv/.ready"
}

sha256() { # macOS has no sha256sum
    if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi | cut -c 1-64
}

is_ready() {
    [[ -f $venv/.ready && -x $venv/bin/python ]] && grep -qx "$group $hash" "$venv/.ready"
}

# The lock is on the folder itself and ends with this process and its children. Python takes it because macOS has
# no flock(1): a lock belongs to the open file, which outlives the Python that locked it.
take_lock() {
    exec 9<"$venv"
    flock_fd9 LOCK_NB && return
    say "Another set-up of $venv is running; waiting for it …"
    flock_fd9 0
}

flock_fd9() {
    "${PYTHON:-python3}" -c "import fcntl, sys
try: fcntl.flock(9, fcntl.LOCK_EX | ${1/#LOCK/fcntl.LOCK})
except BlockingIOError: sys.exit(1)"
}

check_python() {
    "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "Python 3.11 or newer is needed, and ${PYTHON:-python3} is older or missing. Install it, or name it in front: PYTHON=python3.12; $again"
}

# install [OPTION …]: what the locks list, and no source is compiled on the way; options are those that pip and uv share
install() {
    if [[ -n $uv ]] && install_with_uv "$@" >/dev/null 2>&1; then return; fi # pip says what is wrong
    pip_install "$@" >&2 ||
        die "pip could not install $*, as said above. Check the network (a proxy's CA: PIP_CERT=file), $again"
}

pip_install() {
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$venv/bin/python" -m ensurepip >/dev/null || return
    "$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-warn-conflicts --require-hashes --only-binary :all: "$@"
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    case ${1-} in
        quantyard | s3 | kubernetes | test | lint | client | clients | oldclients | docs | openvino | lock) ensure_venv "${2:-.venv}" "$1" ;;
        *) say "Unknown group '${1-}'. Usage: scripts/setup-venv.sh quantyard|s3|kubernetes|test|lint|client|clients|oldclients|docs|openvino|lock [VENV] (for local and bench: scripts/setup-local.sh)"; exit 2 ;;
    esac
fi
