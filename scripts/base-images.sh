#!/usr/bin/env bash
# Make a stand-in for a base image, where its registry cannot be reached.
#
# mmdebstrap makes a root file system from Debian's packages (STANDIN_SUITE of versions.env carries llama.cpp,
# its converter, torch and transformers); a few links give it upstream's /app layout and the very tag
# that upstream's image would have. About 6 minutes, 0.7 GB downloaded, 1.8 GB kept. The label
# quantyard.stand-in=true tells it from the real one, and every image built on it carries that label.
#
# Usage:  scripts/base-images.sh [--if-unreachable] [--force] [--rootfs FILE] [TAG]
#   --if-unreachable  try `docker pull` first; make a stand-in only if the network is the reason it fails
#   --force           make it again although the tag is there
#   --rootfs FILE     take this root file system (from `mmdebstrap … FILE`) and download nothing
#   TAG               of LLAMA_CPP_IMAGE; without it LLAMA_CPP_TAG. Both from versions.env; the environment wins
# Exit codes:  0 the image is there · 1 a step failed · 2 wrong usage, or no stand-in for this tag
set -euo pipefail
cd "$(dirname "$0")/.."

# To add a stand-in: add a row, and a function layout_… that prints what its Dockerfile adds to the packages.
#   tag | layout | Debian packages (python3-pip: ours are installed with it; libgomp1: the binaries' threads)
TABLE='
full | layout_full | ca-certificates,python3-pip,curl,llama.cpp-tools,llama.cpp-tools-extra,python3-gguf,python3-torch,python3-transformers,python3-sentencepiece,libgomp1
'
RECORDED="llama.cpp-tools llama.cpp-tools-extra libllama0 libggml0 python3 python3-gguf python3-torch python3-transformers"
NEEDS_TMP_MIB=5500    # the tree, its downloads and the tar, all at once
NEEDS_DOCKER_MIB=2500 # the image
NETWORK_ERROR='no such host|dial tcp|timeout|timed out|connection re|network is unreachable|no route to host|proxyconnect|TLS handshake|x509|certificate|deadline exceeded|EOF|server misbehaving|403 Forbidden|50[234] '

say() { echo "$*" >&2; }
die() { say "$*"; exit 1; }
usage() { say "$* Usage: scripts/base-images.sh [--if-unreachable] [--force] [--rootfs FILE] [TAG]"; exit 2; }
pin() { sed -n "s/^$1=//p" versions.env; }

main() {
    local force="" if_unreachable="" rootfs="" tag=""
    while (($#)); do
        case $1 in
            --force) force=1 ;;
            --if-unreachable) if_unreachable=1 ;;
            --rootfs)
                rootfs=${2-}
                [[ -r $rootfs ]] || usage "--rootfs needs a file that can be read, not '$rootfs'."
                shift
                ;;
            -*) usage "Unknown option '$1'." ;;
            *) tag=$1 ;;
        esac
        shift
    done
    tag=${tag:-${LLAMA_CPP_TAG:-$(pin LLAMA_CPP_TAG)}}
    local image="${LLAMA_CPP_IMAGE:-$(pin LLAMA_CPP_IMAGE)}:$tag"
    docker version >/dev/null 2>&1 || die "No Docker daemon answers. Type: make doctor"
    if [[ -z $force ]] && docker image inspect "$image" >/dev/null 2>&1; then
        say "$image is here already; nothing to do (--force makes a stand-in again)."
        return
    fi
    [[ -z $if_unreachable ]] || ! pulled "$image" || return 0
    make_stand_in "$image" "$tag" "$rootfs"
}

# Whether docker pull gets IMAGE. Any failure but the network's ends the script: a stand-in must not hide a typo.
pulled() {
    local output
    say "Pulling $1 …"
    if output=$(docker pull --quiet "$1" 2>&1 >/dev/null); then
        say "$1 is here now."
        return 0
    fi
    grep -qE "$NETWORK_ERROR" <<<"$output" ||
        die "docker pull $1 failed: $output. Check LLAMA_CPP_IMAGE and LLAMA_CPP_TAG in versions.env"
    say "Its registry cannot be reached ($output); making a stand-in."
    return 1
}

make_stand_in() {
    local image=$1 tag=$2 rootfs=$3 row layout packages suite
    row=$(awk -F ' *[|] *' -v tag="$tag" '$1 == tag { print $2, $3 }' <<<"$TABLE")
    if [[ -z $row ]]; then
        say "There is no stand-in for the tag '$tag', only for: $(awk 'NF { print $1 }' <<<"$TABLE" | xargs). Type: LLAMA_CPP_TAG=full scripts/base-images.sh"
        exit 2
    fi
    read -r layout packages <<<"$row"
    suite=${STANDIN_SUITE:-$(pin STANDIN_SUITE)}
    [[ -z $rootfs ]] || suite="unknown (--rootfs)"
    WORK=$(mktemp -d)
    RAW=quantyard/stand-in-rootfs:$$ # a name of its own, for the time that docker build needs one
    trap 'docker rmi --no-prune "$RAW" >/dev/null 2>&1 || true; rm -rf "$WORK"' EXIT
    trap 'exit 130' INT TERM
    check_disk "$rootfs"
    if [[ -z $rootfs ]]; then
        rootfs=$WORK/rootfs.tar
        bootstrap "$suite" "$packages" "$rootfs"
    fi
    say "Importing the root file system …"
    local sha256 versions
    sha256=$(sha256sum "$rootfs" | cut -d ' ' -f 1)
    docker import "$rootfs" "$RAW" >/dev/null || die "docker import failed, as said above. Free some space, then type: scripts/base-images.sh"
    # shellcheck disable=SC2016,SC2086  # the field names are dpkg's; one word per package
    versions=$(docker run --rm --network none "$RAW" dpkg-query -W -f '${Package}=${Version}\n' $RECORDED)
    say "Adding upstream's /app layout …"
    { echo "FROM $RAW"; "$layout"; } | docker build --quiet --network none --tag "$image" \
        --label org.opencontainers.image.title="Stand-in for $image" \
        --label org.opencontainers.image.version="$(sed -n 's/^llama.cpp-tools=//p' <<<"$versions")" \
        --label quantyard.stand-in=true \
        --label quantyard.stand-in.suite="$suite" \
        --label quantyard.stand-in.rootfs-sha256="$sha256" \
        --label quantyard.stand-in.packages="$(tr '\n' ' ' <<<"$versions")" - >/dev/null ||
        die "The stand-in could not be built, as said above. Type: scripts/base-images.sh --force, and report it if it happens again"
    say "$image is here: a stand-in with llama.cpp $(sed -n 's/^llama.cpp-tools=//p' <<<"$versions") from Debian $suite."
}

# Links, as upstream's paths must lead to Debian's files; the converter itself is copied out of /usr/share/doc,
# which some systems strip. Its --help runs last: a stand-in that cannot convert never gets the tag.
layout_full() {
    cat <<'DOCKERFILE'
RUN mkdir -p /app/gguf-py \
 && cp /usr/share/doc/llama.cpp-tools/scripts/convert_hf_to_gguf.py /app/ \
 && ln -s /usr/share/llama.cpp/llama.cpp-tools/conversion /app/conversion \
 && ln -s /usr/lib/python3/dist-packages/gguf /app/gguf-py/gguf \
 && for tool in /usr/bin/llama-*; do ln -s "$tool" /app/; done \
 && test -x /app/llama-quantize \
 && python3 -B /app/convert_hf_to_gguf.py --help >/dev/null
WORKDIR /app
DOCKERFILE
}

check_disk() {
    local root
    [[ -n $1 ]] || enough_disk "$WORK" "$NEEDS_TMP_MIB" "or point TMPDIR at a larger disk"
    root=$(docker info --format '{{.DockerRootDir}}')
    [[ ! -d $root ]] || enough_disk "$root" "$NEEDS_DOCKER_MIB" "or type: docker system prune"
}

# enough_disk FOLDER NEEDED_MIB REMEDY
enough_disk() {
    local free_mib
    free_mib=$(df -Pm "$1" | awk 'NR == 2 { print $4 }')
    ((free_mib >= $2)) || die "The stand-in needs $2 MiB in $1, and $free_mib MiB are free. Free some, $3"
}

# bootstrap SUITE PACKAGES FILE. Valid-Until is not checked: a mirror that lags, or a clock that runs ahead, is normal here.
bootstrap() {
    if ! command -v mmdebstrap >/dev/null; then
        if ! command -v apt-get >/dev/null || [[ $EUID -ne 0 ]]; then
            die "mmdebstrap is missing. Type, on Debian or Ubuntu: sudo apt-get install mmdebstrap. Elsewhere: make a root file system on Debian, then --rootfs FILE"
        fi
        say "Installing mmdebstrap …"
        { apt-get -qq update && apt-get -y -qq --no-install-recommends install mmdebstrap; } >/dev/null ||
            die "mmdebstrap could not be installed. Type: apt-get install mmdebstrap"
    fi
    say "Making a root file system from Debian $1: about 6 minutes, mostly downloading …"
    mmdebstrap --quiet --variant=minbase --aptopt='Acquire::Check-Valid-Until "false"' --include="$2" "$1" "$3" ||
        die "mmdebstrap failed, as said above. Check that a Debian mirror can be reached, then type: scripts/base-images.sh"
}

main "$@"
