#!/bin/sh
# Healthy: /health says so, and a model has answered once. The model is asked only once, because a full queue would
# look like a failure later; never where models are loaded by request alone.
set -eu
# shellcheck source=server/image/address.sh
. "$(dirname "$0")/address.sh"
settle_address
address=$(own_address)
answered=/tmp/answered

key_file=${API_KEY_FILE:-/run/keys/api-key}
[ -e "$key_file" ] || key_file=/tmp/api-key
config=$(own_key "$key_file")

echo "$config" | ask 25 --output /dev/null "$address/health"
[ ! -e "$answered" ] || exit 0
case ${LLAMA_ARG_MODELS_AUTOLOAD:-} in 0 | off | false | disabled) exit 0 ;; esac
model=$(echo "$config" | ask 25 "$address/v1/models" | sed -n 's/.*"data":\[{"id":"\([^"]*\)".*/\1/p')
post() {
    echo "$config" | ask 25 --output /dev/null --header 'Content-Type: application/json' \
        --data "{\"model\":\"$model\",$2}" "$address$1"
}
# A model answers the one for which it is made.
post /v1/completions '"prompt":"1","max_tokens":1' || post /v1/embeddings '"input":"1"' ||
    post /v1/rerank '"query":"1","documents":["1"]'
: >"$answered"
