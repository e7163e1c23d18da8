#!/bin/sh
# Healthy: /health says so, and a model has answered once. The model is asked only once, because a full queue would
# look like a failure later.
set -eu
address=http://127.0.0.1:${PORT:-8080}
answered=/tmp/answered
ask() { curl --silent --fail --max-time 25 --noproxy '*' --config - "$@"; } # key on stdin, so that it is not in argv

key_file=${API_KEY_FILE:-/run/keys/api-key}
[ -e "$key_file" ] || key_file=/tmp/api-key
config=""
[ ! -r "$key_file" ] || config="header = \"Authorization: Bearer $(grep -v '^#' "$key_file" | grep -m 1 . )\""

echo "$config" | ask --output /dev/null "$address/health"
[ ! -e "$answered" ] || exit 0
model=$(echo "$config" | ask "$address/v1/models" | sed -n 's/.*"data":\[{"id":"\([^"]*\)".*/\1/p')
post() {
    echo "$config" | ask --output /dev/null --header 'Content-Type: application/json' \
        --data "{\"model\":\"$model\",$2}" "$address$1"
}
# A model answers the one for which it is made.
post /v1/completions '"prompt":"1","max_tokens":1' || post /v1/embeddings '"input":"1"' ||
    post /v1/rerank '"query":"1","documents":["1"]'
: >"$answered"
