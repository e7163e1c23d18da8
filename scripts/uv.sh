#!/usr/bin/env bash
# Sourced by setup-venv.sh: uv, which installs from a cache of unpacked wheels in a tenth of pip's time.
#
# uv itself is installed by the interpreter's pip, once, from locks/lock.txt. Where it cannot be had, or does not know one
# of pip's settings, use_uv fails and pip installs everything.
set -euo pipefail

# use_uv: sets `uv`, the program, and `uv_options`, pip's settings as uv takes them
use_uv() {
    local setting
    uv=$(kept_uv) || return
    uv_options=()
    while IFS= read -r setting; do
        case $setting in
            "") return 1 ;; # one that uv does not have
            SSL_CERT_FILE=*) export "${setting?}" ;;
            end) return ;;
            *) uv_options+=("$setting") ;;
        esac
    done < <("${PYTHON:-python3}" -m pip config list 2>/dev/null | "${PYTHON:-python3}" scripts/uv_options.py)
    return 1
}

# The program of uv, in a folder that every checkout of one user shares; its name tells its content.
kept_uv() {
    local folder
    [[ ${INSTALLER-} != pip && -f locks/lock.txt ]] || return
    folder=${XDG_CACHE_HOME:-$HOME/.cache}/quantyard/uv-$({ cat locks/lock.txt; uname -sm; } | sha256)
    if [[ ! -x $folder/bin/uv ]]; then
        "${PYTHON:-python3}" -m pip install -qq --disable-pip-version-check --require-hashes --only-binary :all: --no-deps \
            --target "$folder.$$" -r locks/lock.txt >/dev/null 2>&1 || return
        [[ -d $folder ]] || mv "$folder.$$" "$folder"
        rm -rf "$folder.$$" # where another process was first
    fi
    echo "$folder/bin/uv"
}

# install_with_uv [OPTION …]: what is named and nothing else, since a lock names every dependency
# Python's compiled files are made now where they will not be written later: stages do not, and some machines forbid it.
install_with_uv() {
    local more=()
    [[ " $* " == *" --no-deps "* ]] || more+=(--no-deps)
    [[ $group != local && -z ${PYTHONDONTWRITEBYTECODE-} ]] || more+=(--compile-bytecode)
    "$uv" pip install -qq --python "$venv/bin/python" --require-hashes --only-binary :all: \
        --index-strategy unsafe-best-match "${more[@]+"${more[@]}"}" "${uv_options[@]+"${uv_options[@]}"}" "$@"
}
