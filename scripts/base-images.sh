#!/usr/bin/env bash
# Make stand-ins for the base images, where their registries cannot be reached.
#
# mmdebstrap makes a root file system from Debian's packages, and a few links give it upstream's layout and the
# very tag that upstream's image would have. The label quantyard.stand-in=true tells it from the real one, and
# every image built on it carries that label.
#   builder  STANDIN_SUITE of versions.env carries llama.cpp, its converter, torch and transformers: about
#            6 minutes, 0.7 GB downloaded, 1.8 GB kept
#   server   the same STANDIN_SUITE, llama-server alone: about 2 minutes, 0.2 GB kept
#   eval     the release that the tag ends with, and its Python: about 1 minute, 0.2 GB kept
#   wheels   as eval's, of an older release: what llama-cpp-python is compiled in
#   proxy    the same STANDIN_SUITE as the server's, nginx and its module njs: about 1 minute, 0.1 GB kept
#   prometheus  the same: what `docker compose --profile monitoring up` adds; made only where it is named: about 2 minutes,
#            0.3 GB kept
#   balancer  the same, HAProxy: what deploy/ puts in front of several servers; made only where it is named: about 1 minute,
#            0.1 GB kept
# Debian's packages lack one file of upstream's, convert_lora_to_gguf.py, which `make lora` runs. It comes out of the
# source of llama-cpp-python that locks/sdists.txt names; a stand-in that it cannot be had for, or does not start in, is
# made without it.
#
# Usage:  scripts/base-images.sh [--if-unreachable] [--force] [--rootfs FILE] [builder|eval|server|proxy|wheels|prometheus|balancer …]
#   --if-unreachable  try `docker pull` first; make a stand-in only if the network is the reason it fails
#   --force           make it again although the tag is there
#   --rootfs FILE     take this root file system (from `mmdebstrap … FILE`) and download no package; for one image
#   builder|eval|server|proxy|wheels|prometheus|balancer  whose base; without it all but the last two. Which one that is (LLAMA_CPP_IMAGE, LLAMA_CPP_TAG,
#                     EVAL_BASE_IMAGE and so on) says versions.env; the environment wins
#   LLAMA_CPP_SDIST=FILE  the source of llama-cpp-python, where it cannot be downloaded
# Exit codes:  0 the images are there · 1 a step failed · 2 wrong usage, or no stand-in for this tag
set -euo pipefail
cd "$(dirname "$0")/.."

NETWORK_ERROR='no such host|dial tcp|timeout|timed out|connection re|network is unreachable|no route to host|proxyconnect|TLS handshake|x509|certificate|deadline exceeded|EOF|server misbehaving|403 Forbidden|50[234] '

IMAGES="builder eval server proxy wheels"
MORE="prometheus balancer"
# To add a stand-in: name it above, and add a case here and a function layout_… that prints what its Dockerfile
# adds to the packages. tags is a pattern; tmp_mib must hold the tree, its downloads and the tar, all at once;
# the version of the first package recorded is the image's.
known() {
    case $1 in
        builder)
            base=$(setting LLAMA_CPP_IMAGE):$(setting LLAMA_CPP_TAG)
            tags=full suite=$(setting STANDIN_SUITE) tmp_mib=5500 docker_mib=2500
            # python3-pip: ours are installed with it; libgomp1: the binaries' threads
            packages=ca-certificates,python3-pip,curl,llama.cpp-tools,llama.cpp-tools-extra,python3-gguf,python3-torch,python3-transformers,python3-sentencepiece,python3-protobuf,libgomp1
            recorded="llama.cpp-tools llama.cpp-tools-extra libllama0 libggml0 python3 python3-gguf python3-torch python3-transformers"
            ;;
        server)
            base=$(setting LLAMA_CPP_IMAGE):$(setting LLAMA_CPP_SERVER_TAG)
            tags=server suite=$(setting STANDIN_SUITE) tmp_mib=1200 docker_mib=500
            # curl: the healthcheck's, as upstream's image has it
            packages=ca-certificates,curl,llama.cpp-tools,libgomp1
            recorded="llama.cpp-tools libllama0 libggml0"
            ;;
        eval)
            base=$(setting EVAL_BASE_IMAGE):$(setting EVAL_BASE_TAG)
            tags='3.*-slim-*' suite=${base##*-} tmp_mib=900 docker_mib=400 # the tag names upstream's Debian release
            packages=ca-certificates,python3-pip,netbase,tzdata
            recorded="python3 python3-pip libc6 libstdc++6"
            ;;
        wheels)
            base=$(setting WHEELS_BASE_IMAGE):$(setting WHEELS_BASE_TAG)
            tags='3.*-slim-*' suite=${base##*-} tmp_mib=900 docker_mib=400
            packages=ca-certificates,python3-pip
            recorded="python3 python3-pip libc6 libstdc++6"
            ;;
        proxy)
            base=$(setting PROXY_IMAGE):$(setting PROXY_TAG)
            tags='1.*' suite=$(setting STANDIN_SUITE) tmp_mib=600 docker_mib=300
            packages=nginx,libnginx-mod-http-js,curl # curl: the healthcheck's, as upstream's image has it
            recorded="nginx libnginx-mod-http-js libc6"
            ;;
        prometheus)
            base=$(setting PROMETHEUS_IMAGE):$(setting PROMETHEUS_TAG)
            tags='v[23].*' suite=$(setting STANDIN_SUITE) tmp_mib=1500 docker_mib=600
            packages=prometheus
            recorded="prometheus libc6"
            ;;
        balancer)
            base=$(setting BALANCER_IMAGE):$(setting BALANCER_TAG)
            tags='[23].*' suite=$(setting STANDIN_SUITE) tmp_mib=600 docker_mib=300
            packages=haproxy
            recorded="haproxy libc6"
            ;;
    esac
}

say() { echo "$*" >&2; }
die() { say "$*"; exit 1; }
usage() { say "$* Usage: scripts/base-images.sh [--if-unreachable] [--force] [--rootfs FILE] [builder|eval|server|proxy|wheels|prometheus|balancer …]"; exit 2; }
setting() { local given=${!1-}; echo "${given:-$(sed -n "s/^$1=//p" versions.env)}"; } # setting NAME

main() {
    local force="" if_unreachable="" rootfs="" name images=()
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
            *)
                [[ " $IMAGES $MORE " == *" $1 "* ]] || usage "Unknown image '$1'."
                images+=("$1")
                ;;
        esac
        shift
    done
    ((${#images[@]})) || read -ra images <<<"$IMAGES"
    [[ -z $rootfs || ${#images[@]} -eq 1 ]] || usage "--rootfs FILE is for one image: name it."
    docker version >/dev/null 2>&1 || die "No Docker daemon answers. Type: make doctor"
    for name in "${images[@]}"; do
        provide "$name" "$force" "$if_unreachable" "$rootfs"
    done
}

# provide NAME FORCE IF_UNREACHABLE ROOTFS
provide() {
    local base tags suite tmp_mib docker_mib packages recorded
    known "$1"
    if [[ -z $2 ]] && docker image inspect "$base" >/dev/null 2>&1; then
        if is_current "$1"; then
            # Who asked for stand-ins is answered; before a build this is what usually happens, five times.
            [[ -n $3 ]] || say "$base is here already; nothing to do (--force makes a stand-in again)."
            return
        fi
        say "$base is a stand-in made in another way than now; making it again."
    fi
    [[ -z $3 ]] || ! pulled "$base" || return 0
    (make_stand_in "$1" "$4") # a shell of its own, whose traps clean up before the next image needs the disk
}

# A real image is, and a stand-in that does not tell what it was made from.
is_current() {
    local was
    was=$(docker image inspect --format '{{ index .Config.Labels "quantyard.stand-in.made-from" }}' "$base")
    [[ -z $was || $was == $(made_from "$1") ]]
}

# made_from NAME: a hash of what decides a stand-in's content, the packages' versions apart
made_from() {
    {
        echo "$suite $packages"
        "layout_$1" "${base##*:}"
        [[ $1 != builder ]] || grep '^llama-cpp-python==' locks/sdists.txt
    } | sha256sum | cut -c 1-64
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
        die "docker pull $1 failed: $output. Check its name and tag in versions.env"
    say "Its registry cannot be reached ($output); making a stand-in."
    return 1
}

# make_stand_in NAME ROOTFS, with what known says
make_stand_in() {
    local name=$1 rootfs=$2 tag=${base##*:} sha256 versions version inputs=""
    # shellcheck disable=SC2053  # the right side is a pattern
    if [[ $tag != $tags ]]; then
        say "There is no stand-in for the tag '$tag' of $name, only for: $tags. Change it in versions.env"
        exit 2
    fi
    if [[ -z $rootfs ]]; then inputs=$(made_from "$name"); else suite="unknown (--rootfs)"; fi
    WORK=$(mktemp -d)
    RAW=quantyard/stand-in-rootfs:$$ # a name of its own, for the time that docker build needs one
    trap 'docker rmi --no-prune "$RAW" >/dev/null 2>&1 || true; rm -rf "$WORK"' EXIT
    trap 'exit 130' INT TERM
    check_disk "$rootfs" "$tmp_mib" "$docker_mib"
    if [[ -z $rootfs ]]; then
        rootfs=$WORK/rootfs.tar
        bootstrap "$suite" "$packages" "$rootfs"
    fi
    say "Importing the root file system …"
    sha256=$(sha256sum "$rootfs" | cut -d ' ' -f 1)
    docker import "$rootfs" "$RAW" >/dev/null || die "docker import failed, as said above. Free some space, then type: scripts/base-images.sh $name"
    # shellcheck disable=SC2016,SC2086  # the field names are dpkg's; one word per package
    versions=$(docker run --rm --network none "$RAW" dpkg-query -W -f '${Package}=${Version}\n' $recorded)
    version=$(sed -n "s/^${recorded%% *}=//p" <<<"$versions")
    say "Adding upstream's layout …"
    mkdir "$WORK/files"
    if [[ $name == builder ]]; then lora_converter "$WORK/files"; fi
    { echo "FROM $RAW"; "layout_$name" "$tag"; } | docker build --quiet --network none --tag "$base" --file - \
        --label org.opencontainers.image.title="Stand-in for $base" \
        --label org.opencontainers.image.version="$version" \
        --label quantyard.stand-in=true \
        --label quantyard.stand-in.suite="$suite" \
        --label quantyard.stand-in.made-from="$inputs" \
        --label quantyard.stand-in.rootfs-sha256="$sha256" \
        --label quantyard.stand-in.packages="$(tr '\n' ' ' <<<"$versions")" "$WORK/files" >/dev/null ||
        die "The stand-in could not be built, as said above. Type: scripts/base-images.sh --force $name, and report it if it happens again"
    say "$base is here: a stand-in with ${recorded%% *} $version from Debian $suite."
}

# lora_converter FOLDER: put convert_lora_to_gguf.py there, if it can be had.
lora_converter() {
    local file=convert_lora_to_gguf.py python=.venv/bin/python sdist=${LLAMA_CPP_SDIST-} version
    version=$(sed -n 's/^llama-cpp-python==\([^ ]*\).*/\1/p' locks/sdists.txt)
    [[ -x $python ]] || python=python3
    if [[ -z $sdist && -r .venv-local/share/llama.cpp/$file ]]; then
        cp ".venv-local/share/llama.cpp/$file" "$1/"
        return
    fi
    if [[ -z $sdist ]]; then
        PYTHON=$python docker/compile-wheels.sh --sources "$WORK/sources" >&2 || true
        sdist=$WORK/sources/llama_cpp_python-$version.tar.gz
    fi
    tar -xzf "$sdist" --no-same-owner --strip-components=3 -C "$1" "llama_cpp_python-$version/vendor/llama.cpp/$file" ||
        say "$file could not be had, so make lora will need ENGINE=local. Type: LLAMA_CPP_SDIST=FILE scripts/base-images.sh --force builder"
}

# Links, as upstream's paths must lead to Debian's files; the converter itself is copied out of /usr/share/doc,
# which some systems strip. Its --help runs last: a stand-in that cannot convert never gets the tag.
layout_builder() {
    cat <<'DOCKERFILE'
COPY . /app/
RUN mkdir -p /app/gguf-py \
 && cp /usr/share/doc/llama.cpp-tools/scripts/convert_hf_to_gguf.py /app/ \
 && ln -s /usr/share/llama.cpp/llama.cpp-tools/conversion /app/conversion \
 && ln -s /usr/lib/python3/dist-packages/gguf /app/gguf-py/gguf \
 && for tool in /usr/bin/llama-*; do ln -s "$tool" /app/; done \
 && test -x /app/llama-quantize \
 && python3 -B /app/convert_hf_to_gguf.py --help >/dev/null \
 && { python3 -B /app/convert_lora_to_gguf.py --help >/dev/null || rm -f /app/convert_lora_to_gguf.py; }
WORKDIR /app
DOCKERFILE
}

# It ends as upstream's does, with the bare server as entrypoint. The version check
# runs last: a stand-in that cannot serve never gets the tag.
layout_server() {
    cat <<'DOCKERFILE'
RUN mkdir -p /app \
 && ln -s /usr/bin/llama-server /app/llama-server \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt \
 && /app/llama-server --version
ENV LLAMA_ARG_HOST=0.0.0.0
WORKDIR /app
HEALTHCHECK CMD ["curl", "-f", "http://localhost:8080/health"]
ENTRYPOINT ["/app/llama-server"]
DOCKERFILE
}

# Upstream's Python is in /usr/local and its pip may write there; Debian's is linked, and no longer forbids pip.
# Its version is checked: a stand-in with another Python than the tag says never gets the tag.
layout_wheels() { layout_eval "$1"; }
layout_eval() {
    cat <<DOCKERFILE
RUN for name in python python3; do ln -s /usr/bin/python3 /usr/local/bin/\$name; done \\
 && for name in pip pip3; do ln -s /usr/bin/pip3 /usr/local/bin/\$name; done \\
 && rm -f /usr/lib/python3*/EXTERNALLY-MANAGED \\
 && python3 -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != "${1%%-*}" and "not Python ${1%%-*}: " + sys.version)'
ENV LANG=C.UTF-8
CMD ["python3"]
DOCKERFILE
}

# Debian's modules lie where upstream's do; its packages would load them all, upstream's image loads none. The test of a
# configuration with the module runs last: a stand-in that cannot do what the proxy needs never gets the tag.
layout_proxy() {
    cat <<'DOCKERFILE'
RUN rm -rf /etc/nginx/modules-enabled /var/lib/apt/lists/* /var/cache/apt \
 && ln -sf /dev/stdout /var/log/nginx/access.log \
 && ln -sf /dev/stderr /var/log/nginx/error.log \
 && printf 'load_module /usr/lib/nginx/modules/ngx_http_js_module.so;\nevents {}\nhttp {}\n' >/tmp/test.conf \
 && nginx -t -c /tmp/test.conf \
 && rm /tmp/test.conf
EXPOSE 80
STOPSIGNAL SIGQUIT
CMD ["nginx", "-g", "daemon off;"]
DOCKERFILE
}

# Its folder, user and entrypoint are upstream's; the check of the configuration runs last.
layout_prometheus() {
    cat <<'DOCKERFILE'
RUN rm -rf /var/lib/apt/lists/* /var/cache/apt \
 && mkdir -p /prometheus \
 && chown nobody:nogroup /prometheus \
 && printf 'global: {scrape_interval: 10s}\n' >/tmp/test.yml \
 && promtool check config /tmp/test.yml \
 && rm /tmp/test.yml
USER nobody
EXPOSE 9090
VOLUME ["/prometheus"]
WORKDIR /prometheus
ENTRYPOINT ["/bin/prometheus"]
CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]
DOCKERFILE
}

# Its user, signal and command are upstream's.
layout_balancer() {
    cat <<'DOCKERFILE'
RUN rm -rf /var/lib/apt/lists/* /var/cache/apt && haproxy -v
STOPSIGNAL SIGUSR1
USER haproxy
CMD ["haproxy", "-f", "/usr/local/etc/haproxy/haproxy.cfg"]
DOCKERFILE
}

# check_disk ROOTFS TMP_MIB DOCKER_MIB
check_disk() {
    local root
    [[ -n $1 ]] || enough_disk "$WORK" "$2" "or point TMPDIR at a larger disk"
    root=$(docker info --format '{{.DockerRootDir}}')
    [[ ! -d $root ]] || enough_disk "$root" "$3" "or type: docker system prune"
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
    say "Making a root file system from Debian $1: minutes, mostly downloading …"
    mmdebstrap --quiet --variant=minbase --aptopt='Acquire::Check-Valid-Until "false"' --include="$2" "$1" "$3" ||
        die "mmdebstrap failed, as said above. Check that a Debian mirror can be reached, then type: scripts/base-images.sh"
}

main "$@"
