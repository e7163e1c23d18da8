#!/usr/bin/env bash
# Lock every Python dependency, direct and transitive, with its hashes: pyproject.toml in, locks/*.txt out.
#
# One lock per place that something is installed in, valid for Linux (x86_64, aarch64) and macOS and every Python from
# requires-python on. The lock of `bench` holds nearly everything and constrains the others, so that a package has one
# version everywhere. Four locks are cut out of it, because they are installed in other ways:
#   sdists     packages without wheels: scripts/wheels.sh compiles them once
#   pure-sdists  those of pure Python, which take seconds: docker/pure-wheels.sh
#   torch      torch as PyPI has it, with CUDA on Linux
#   torch-cpu  PyTorch's own CPU builds of the same version for Linux, which PyPI does not carry. Their hashes are those of
#              the files that pip finds where this script looks for them (PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS). Of
#              2.13.0, only the file for CPython 3.11 on x86_64 was hashed so; the other hashes are those that several
#              public locks agree on. A set-up that finds none of these files takes torch from PyPI.
# llama-wheels.sha256 holds the hashes of upstream's own wheels of llama-cpp-python (llama_wheel.py), as the host of its
# releases states them. Where that cannot be reached, the known hashes stay while the version does; a new version then has
# none, and set-ups compile it.
# No address of an index is written. uv reads its own settings and SSL_CERT_FILE, not pip's.
#
# Usage:  scripts/lock.sh              lock what pyproject.toml says; versions that still fit stay
#         scripts/lock.sh --check      write nothing; fail where a lock is stale
#         scripts/lock.sh --torch-cpu  also look for more CPU builds of torch, and add their hashes
#         scripts/lock.sh --llama-wheels  ask again for the hashes of upstream's wheels of llama-cpp-python, and for more
#         scripts/lock.sh --upgrade    the newest versions; also moves the pins in pyproject.toml, but for `# held` ones
# Exit codes:  0 done, or nothing stale · 1 a step failed, or a lock is stale · 2 wrong usage
set -euo pipefail
cd "$(dirname "$0")/.."

# To add a lock: name it here, and what it is made of: the groups of pyproject.toml, `project` for its dependencies.
SHARED="bench:project,bench local:local eval:eval builder:builder client:client quantyard:project s3:project,s3 kubernetes:project,kubernetes test:project,test lint:lint"
SEPARATE="build:build clients:clients oldclients:oldclients docs:docs openvino:openvino pip:pip lock:lock converter:converter" # never installed beside the others, so not constrained by them
# To add a package without wheels: name it here; one of pure Python as PURE_SDISTS, since another list SDISTS compiles
# llama.cpp again everywhere. Set-ups and images install nothing else from source.
SDISTS="llama-cpp-python rouge-score sqlitedict word2number"
PURE_SDISTS="langdetect"
TORCH="torch triton nvidia-.* cuda-.*"
# What is installed of `converter`, in front of an environment that has the rest.
CONVERTER="transformers tokenizers huggingface-hub"

say() { echo "$*" >&2; }
die() { say "$*"; exit 1; }

main() {
    local mode=${1-}
    case $mode in
        "" | --check | --torch-cpu | --upgrade) ;;
        --llama-wheels) # nothing else of the locks depends on it
            mkdir -p "${WORK:=$(mktemp -d)}/locks"
            trap 'rm -rf "$WORK"' EXIT
            llama_wheels locks/sdists.txt
            cp "$WORK/locks/llama-wheels.sha256" locks/
            say "locks/llama-wheels.sha256 is made. Type: git diff --stat"
            return ;;
        *) say "Unknown argument '$mode'. Usage: scripts/lock.sh [--check|--torch-cpu|--llama-wheels|--upgrade]"; exit 2 ;;
    esac
    if [[ -z ${UV-} ]]; then
        scripts/setup-venv.sh lock .venv-lock
        UV=$PWD/.venv-lock/bin/uv
    fi
    WORK=$(mktemp -d)
    trap 'rm -rf "$WORK"' EXIT
    cp pyproject.toml "$WORK/"
    mkdir -p locks "$WORK/locks" "$WORK/full"
    if [[ $mode == --upgrade ]]; then
        move_pins
    else
        keep_versions
    fi
    make_locks
    if [[ $mode == --check ]]; then
        diff -u locks "$WORK/locks" >&2 || die "The locks are stale, as said above. Type: scripts/lock.sh"
        say "The locks are what pyproject.toml makes."
    else
        cp "$WORK/pyproject.toml" .
        rm -f locks/*.txt
        cp "$WORK"/locks/* locks/
        say "locks/ is made. Type: git diff --stat"
    fi
}

# uv prefers the versions and hashes of the file it is to write.
keep_versions() {
    local row name
    for row in $SHARED $SEPARATE; do
        name=${row%%:*}
        cat "locks/$name.txt" 2>/dev/null >"$WORK/full/$name.txt" || true
        case $name in
            bench | local) cat locks/{sdists,pure-sdists,torch}.txt 2>/dev/null >>"$WORK/full/$name.txt" || true ;;
            eval) cat locks/{sdists,pure-sdists}.txt 2>/dev/null >>"$WORK/full/$name.txt" || true ;;
        esac
    done
}

make_locks() {
    local row
    for row in $SHARED $SEPARATE; do
        say "Locking ${row%%:*} …"
        case " $SEPARATE " in
            *" $row "*) compile "${row%%:*}" "${row#*:}" ;;
            *) compile "${row%%:*}" "${row#*:}" --constraint full/bench.txt ;;
        esac
    done
    # shellcheck disable=SC2086  # one word per name
    for row in $SHARED $SEPARATE; do
        entries leave $SDISTS $PURE_SDISTS $TORCH <"$WORK/full/${row%%:*}.txt" | write "${row%%:*}"
    done
    # shellcheck disable=SC2086
    entries take $CONVERTER <"$WORK/full/converter.txt" | write converter
    # shellcheck disable=SC2086
    entries take $SDISTS <"$WORK/full/bench.txt" | write sdists
    # shellcheck disable=SC2086
    entries take $PURE_SDISTS <"$WORK/full/bench.txt" | write pure-sdists
    # shellcheck disable=SC2086
    entries take $TORCH <"$WORK/full/bench.txt" | write torch
    torch_cpu >"$WORK/torch-cpu"
    write torch-cpu <"$WORK/torch-cpu"
    llama_wheels "$WORK/locks/sdists.txt"
}

# compile NAME GROUPS [UV_OPTION …]
compile() {
    local name=$1 groups=$2 sources=() group
    shift 2
    for group in ${groups//,/ }; do
        if [[ $group == project ]]; then sources+=(pyproject.toml); else sources+=(--group "pyproject.toml:$group"); fi
    done
    [[ $name != bench ]] || set --
    (cd "$WORK" && "$UV" pip compile --quiet --universal --generate-hashes --no-header --no-emit-index-url \
        --no-emit-find-links --output-file "full/$name.txt" "${sources[@]}" "$@" >/dev/null) ||
        die "$name cannot be locked, as said above."
}

# entries take|leave NAME …: the entries of the lock on stdin whose name matches one of these patterns (take), or does not (leave)
entries() {
    local action=$1
    shift
    awk -v names="^($(IFS='|'; echo "$*"))==" -v take="$([[ $action == take ]] && echo 1 || echo 0)" '
        /^[A-Za-z0-9]/ { wanted = (($0 ~ names) == take) }
        wanted'
}

write() {
    { echo "# Made by scripts/lock.sh from pyproject.toml; do not edit."; cat; } >"$WORK/locks/$1.txt"
}

# The known hashes stay while the version does; a new version, or --torch-cpu, looks for its files.
torch_cpu() {
    local pin version platform file known=locks/torch-cpu.txt
    pin=$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' "$WORK/locks/torch.txt")+cpu
    grep -qsF "$pin " "$known" || known=/dev/null
    grep -o 'sha256:[0-9a-f]*' "$known" >"$WORK/hashes" || true
    if [[ $known == /dev/null || $mode == --torch-cpu ]]; then
        for version in 3.11 3.12 3.13 3.14; do
            for platform in x86_64 aarch64; do
                python3 -m pip download -qq --disable-pip-version-check --no-deps --only-binary :all: --dest "$WORK/torch" \
                    --python-version "$version" --platform "manylinux_2_28_$platform" "$pin" >/dev/null 2>&1 || continue
                say "Found: $pin for Python $version, $platform."
            done
        done
        compgen -G "$WORK/torch/*.whl" >/dev/null || die "No CPU build of $pin is found here. Set PIP_EXTRA_INDEX_URL to PyTorch's CPU index; $0"
        for file in "$WORK"/torch/*.whl; do
            python3 -m pip hash "$file" | grep -o 'sha256:[0-9a-f]*'
        done >>"$WORK/hashes"
    fi
    echo "# CPython 3.11 to 3.14 on Linux x86_64 and aarch64. To add a build: scripts/lock.sh --torch-cpu"
    echo "$pin \\"
    sort -u "$WORK/hashes" | sed -e 's/^/    --hash=/' -e '$!s/$/ \\/'
}

# llama_wheels SDISTS: the lock of upstream's wheels of the llama-cpp-python in SDISTS
llama_wheels() {
    local pin known=locks/llama-wheels.sha256 out=$WORK/locks/llama-wheels.sha256
    pin=$(sed -n 's/^llama-cpp-python==\([^ ]*\).*/\1/p' "$1")
    if [[ $mode != --llama-wheels ]] && grep -qsF -- "-$pin-" "$known"; then
        cp "$known" "$out"
        return
    fi
    cat >"$out" <<'HEAD'
# Made by scripts/lock.sh; do not edit. Upstream's own wheels of the llama-cpp-python that locks/sdists.txt pins, by the
# folder of its index. Only a file whose hash is here is installed. To look for more: scripts/lock.sh --llama-wheels
HEAD
    if python3 scripts/llama_wheel.py record "$pin" >"$WORK/llama-wheels"; then
        { echo "# of: upstream's release of $pin"; cat "$WORK/llama-wheels"; } >>"$out"
        return
    fi
    say "The hashes of upstream's wheels are not known: $(cat "$WORK/llama-wheels")."
    [[ $mode != --llama-wheels ]] || die "locks/llama-wheels.sha256 stays as it is. Where that host is reached, type: $0 $mode"
    say "Set-ups will compile llama-cpp-python $pin, until scripts/lock.sh --llama-wheels has reached upstream's releases."
}

# Every pin in pyproject.toml becomes the newest version that fits with the others.
move_pins() {
    local row
    cp "$WORK/pyproject.toml" "$WORK/pins.toml"
    sed -i.old -E '/# held/!s/^( *|[a-z]+ = \[)"([A-Za-z0-9_.-]+(\[[a-z0-9,]+\])?)==[^"]*"/\1"\2"/' "$WORK/pyproject.toml"
    for row in $SHARED $SEPARATE; do
        case ${row%%:*} in bench | lint | build | clients | oldclients | docs | pip | lock) ;; *) continue ;; esac
        say "Looking for newer versions of ${row%%:*} …"
        compile "${row%%:*}" "${row#*:}"
    done
    python3 - "$WORK/pins.toml" "$WORK"/full/*.txt >"$WORK/pyproject.toml" <<'PYTHON'
import re, sys
def plain(name): return re.sub(r"[-_.]+", "-", name).lower()
versions = {}
for path in sys.argv[2:]:
    for name, version in re.findall(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", open(path).read(), re.MULTILINE):
        versions.setdefault((path.rpartition("/")[2][:-4], plain(name)), version)
group = ""
for line in open(sys.argv[1]):
    group = (re.match(r"([a-z]+) = \[", line) or [group, group])[1]
    place = group if group in ("lint", "build", "clients", "oldclients", "docs", "pip", "lock") else "bench"
    if "# held" not in line:
        line = re.sub(r'"([A-Za-z0-9_.-]+)((?:\[[a-z0-9,]+\])?)==([^"]*)"',
                      lambda m: f'"{m[1]}{m[2]}=={versions.get((place, plain(m[1])), m[3])}"', line)
    sys.stdout.write(line)
PYTHON
    rm -f "$WORK"/full/*.txt
}

main "$@"
