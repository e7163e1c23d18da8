#!/usr/bin/env bash
# Build the image of nodes of ENGINE=kubernetes: Quantyard of this checkout with the tools of ENGINE=local; push it, and
# print its name by digest, which is the value of KUBE_IMAGE. llama-cpp-python is compiled by scripts/wheels.sh, once.
#
# Usage:  scripts/node-image.sh REPOSITORY[:TAG]    such as registry.example/team/quantyard-node
#         PUSH=0 scripts/node-image.sh NAME         load it into this machine's Docker; print its name
#         PIP_EXTRA_INDEX_URL=… PIP_FIND_LINKS=folder    where pip finds a CPU build of torch (see setup-local.sh)
#         EXTRA_CA=file PIP_CONF=file               while building, never kept
# Exit codes:  0 printed · 1 a step failed · 2 wrong usage
set -euo pipefail
cd "$(dirname "$0")/.."

say() { echo "$*" >&2; }
if [[ $# -ne 1 || $1 == -* || $1 == *@* ]]; then
    say "Usage: scripts/node-image.sh REPOSITORY[:TAG]; PUSH=0 scripts/node-image.sh NAME"
    exit 2
fi
# shellcheck source=versions.env
source versions.env
wheels=$(scripts/wheels.sh)
scripts/wheels.sh --pure >/dev/null

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
options=(--build-arg "BASE=$WHEELS_BASE_IMAGE:$WHEELS_BASE_TAG" --build-context "wheels=${wheels%/*}")
options+=(--build-arg "PIP_EXTRA_INDEX_URL=${PIP_EXTRA_INDEX_URL-}" --attest type=provenance,disabled=true)
[[ ! -d ${PIP_FIND_LINKS-} ]] || options+=(--build-context "links=$PIP_FIND_LINKS")
[[ -z ${EXTRA_CA-} ]] || options+=(--secret "id=extra_ca,src=$EXTRA_CA")
[[ -z ${PIP_CONF-} ]] || options+=(--secret "id=pip_conf,src=$PIP_CONF")
for proxy in HTTP_PROXY HTTPS_PROXY NO_PROXY; do
    [[ -z ${!proxy-} ]] || options+=(--build-arg "$proxy") # BuildKit keeps these out of the history
done
if [[ ${PUSH-1} == 0 ]]; then options+=(--load); else options+=(--push); fi

docker buildx build --file docker/node/Dockerfile --tag "$1" --metadata-file "$work/metadata" "${options[@]}" . >&2 ||
    { say "The image could not be built or pushed, as said above. A registry needs: docker login"; exit 1; }
if [[ ${PUSH-1} == 0 ]]; then
    echo "$1"
else
    digest=$(sed -n 's/.*"containerimage.digest": *"\(sha256:[0-9a-f]*\)".*/\1/p' "$work/metadata" | head -n 1)
    name=${1##*/}
    echo "${1%"$name"}${name%%:*}@$digest"
fi
