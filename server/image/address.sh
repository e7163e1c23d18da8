# Where this container reaches its own server, whatever the settings. Sourced by entrypoint.sh and healthcheck.sh.

# settle_address: HOST and PORT, of which upstream has variables too. Upstream's image sets LLAMA_ARG_HOST.
settle_address() {
    HOST=${HOST:-${LLAMA_ARG_HOST:-0.0.0.0}} PORT=${LLAMA_ARG_PORT:-${PORT:-8080}}
}

# own_address: scheme, host, port and prefix; of several hosts, the first.
own_address() {
    scheme=http
    [ -z "${LLAMA_ARG_SSL_KEY_FILE:-}" ] || [ -z "${LLAMA_ARG_SSL_CERT_FILE:-}" ] || scheme=https
    host=${HOST%%,*}
    case $host in
        0.0.0.0 | localhost) host=127.0.0.1 ;;
        :: | "[::]") host="[::1]" ;;
        "["*) ;;
        *:*) host="[$host]" ;;
    esac
    echo "$scheme://$host:$PORT${LLAMA_ARG_API_PREFIX:-}"
}

# own_key FILE: the header with the first key, as curl reads it from a configuration; nothing without a key. Not an
# argument of curl: those can be read by others.
own_key() {
    key=${LLAMA_API_KEY:-}
    key=${key%%,*}
    [ -n "$key" ] || [ ! -r "$1" ] || key=$(grep -v '^#' "$1" | grep -m 1 .) || true
    [ -z "$key" ] || echo "header = \"Authorization: Bearer $key\""
}

# ask SECONDS OPTIONS…: curl with what own_key says on its input. --insecure: a certificate is for the server's own name.
ask() {
    seconds=$1
    shift
    curl --silent --fail --insecure --max-time "$seconds" --noproxy '*' --config - "$@"
}
