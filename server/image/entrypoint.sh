#!/bin/sh
# The entrypoint of the server image: checks its settings, sets defaults, starts llama-server, and explains its failures.
# Upstream's image has no Python, so this is POSIX shell and coreutils.
#
# Environment (all optional; .env.example explains them for people):
#   MODEL           a GGUF, or a folder of them: several are served by name (llama-server's router)
#   MODEL_NAME      the name of a single model in the API; default: that of its file, or of MODEL_FILE if it was mounted
#   HOST PORT       where to listen in the container   BIND_ADDRESS  the host's address where it is published
#   API_KEY_FILE    one key per line                   API_KEY=off   no key; only on loopback
#   CONTEXT_SIZE PARALLEL THREADS N_GPU_LAYERS     see defaults.sh
#   CACHE_MIB       memory for the prompts of past conversations; default 0, since llama-server's own default of 8 GiB
#                   slowly fills a container until it is killed
#   CACHE_TYPE      the type of the KV cache, such as q8_0, or q8_0/f16 for keys and values; default f16
#   LLAMA_ARG_MODELS_MAX  of several models, how many stay loaded; see defaults.sh
#   START_TIMEOUT   seconds until llama-server must be up; default 120, plus one for each 20 MiB of the model
#   DRAIN_TIMEOUT   seconds that a stop waits for the answers in progress, with one model; default 0: they end within two
#   MMPROJ          what reads pictures or sound for a model (a projector); default: those in MODEL, for the models whose
#                   vectors are as wide
#   LORA            a LoRA adapter as GGUF         any LLAMA_ARG_… of llama-server; of the address (port, host, prefix,
#                   certificate) address.sh knows them too
#
# Exit codes: llama-server's · 2 the model or a setting cannot be served · 5 memory ran out
set -eu
here=$(dirname "$0")
# shellcheck source=server/image/defaults.sh
. "$here/defaults.sh"
# shellcheck source=server/image/address.sh
. "$here/address.sh"

say() { echo "[serve] $*" >&2; }
die() { say "error: $1"; shift; for line; do say "$line"; done; exit 2; }

main() {
    MODEL=${MODEL:-/model} BIND_ADDRESS=${BIND_ADDRESS:-127.0.0.1}
    settle_address
    check_numbers
    check_cache_type
    check_prefix
    check_part "$MODEL"
    # The number to start with; llama-server adds threads per connection, which compose.yaml's proxy limits.
    set -- --host "$HOST" --port "$PORT" --threads-http 32 --metrics --no-slots --jinja --no-kv-unified "$@"
    listed=$(listing)
    models=$(models_in "$MODEL")
    check_models "$models"
    [ ! -r "$MODEL/.note" ] || sed 's/^/[serve] note: /' "$MODEL/.note" >&2
    projectors=$(projectors_in "$MODEL")
    if [ "$(echo "$models" | wc -l)" -gt 1 ]; then
        say "several models: $(names_of "$models"); requests choose by name"
        [ -n "$projectors" ] || set -- --models-dir "$MODEL" "$@"
    else
        projector=$(projector_of "$models")
        [ -z "$projector" ] || set -- --mmproj "$projector" "$@"
        file=$models # which MODEL_FILE has another name for, unless that is a folder
        [ -d "$MODEL" ] || file=${MODEL_FILE:-$models}
        set -- --model "$models" --alias "$(api_name "${MODEL_NAME:-$(names_of "$file")}")" "$@"
    fi
    protect
    [ -z "$key_file" ] || set -- --api-key-file "$key_file" "$@"
    [ "$web_ui" = on ] || set -- --no-ui "$@"
    # Not left to upstream's variables: the router's processes would take them too, and it speaks to them without TLS.
    address=$(own_address)
    case $address in
        https:*) set -- --ssl-key-file "$LLAMA_ARG_SSL_KEY_FILE" --ssl-cert-file "$LLAMA_ARG_SSL_CERT_FILE" "$@" ;;
    esac
    unset LLAMA_ARG_SSL_KEY_FILE LLAMA_ARG_SSL_CERT_FILE
    if [ -n "${LORA:-}" ]; then
        check_models "$LORA"
        set -- --lora "$LORA" "$@"
    fi
    decide "$models"
    set -- --ctx-size "$CONTEXT_SIZE" --parallel "$PARALLEL" --threads "$THREADS" --cache-ram "${CACHE_MIB:-0}" "$@"
    if [ "$(echo "$models" | wc -l)" -gt 1 ]; then
        presets=/tmp/models-$$.ini
        write_presets "$models" >"$presets"
        [ ! -s "$presets" ] || set -- --models-preset "$presets" "$@"
        set -- --models-max "$KEPT" "$@"
    else
        # shellcheck disable=SC2046  # flags and values have no blanks
        set -- $(flags_for "$models" | sed 's/^/--/; s/ true$//') "$@"
    fi
    if [ -n "${CACHE_TYPE:-}" ]; then
        set -- --cache-type-k "${CACHE_TYPE%%/*}" --cache-type-v "${CACHE_TYPE##*/}" "$@"
    fi
    [ -z "${N_GPU_LAYERS:-}" ] || set -- --n-gpu-layers "$N_GPU_LAYERS" "$@"
    run "${LLAMA_SERVER:-/app/llama-server}" "$@"
}

check_numbers() {
    value=""
    for name in PORT CONTEXT_SIZE PARALLEL THREADS CACHE_MIB START_TIMEOUT DRAIN_TIMEOUT; do
        eval "value=\${$name:-0}"
        case $value in
            *[!0-9]* | ??????????*) die "$name=$value is not a whole number." "Give a number, or leave it out." ;;
        esac
    done
}

# llama.cpp's types of a KV cache: one for keys and values, or two with a slash between them.
check_cache_type() {
    one='(f32|f16|bf16|q8_0|q5_1|q5_0|q4_1|q4_0|iq4_nl)'
    [ -z "${CACHE_TYPE:-}" ] || echo "$CACHE_TYPE" | paste -sd , - | grep -Eqx "$one(/$one)?" ||
        die "CACHE_TYPE=$CACHE_TYPE is not a type of a KV cache." "Give one like q8_0, or q8_0/f16 for keys and values, or leave it out."
}

check_prefix() {
    case ${LLAMA_ARG_API_PREFIX:-} in
        "") ;;
        /) die "LLAMA_ARG_API_PREFIX=/ is not a prefix." "Leave it out, or give one like /llm" ;;
        /*[!/]) ;;
        *) die "LLAMA_ARG_API_PREFIX=$LLAMA_ARG_API_PREFIX is not a prefix." "Give it with a slash before it and none behind: /llm" ;;
    esac
}

# check_part FILE: refuses a part of a model that cannot be loaded from it: not the first, or without the others.
check_part() {
    [ -f "$1" ] || return 0
    given=${MODEL_FILE:-$1}
    case ${given##*/} in *-[0-9][0-9][0-9][0-9][0-9]-of-[0-9][0-9][0-9][0-9][0-9].gguf) ;; *) return 0 ;; esac
    case ${1##*/} in *-00001-of-*.gguf) return 0 ;; esac
    case $given in *-00001-of-00001.gguf) return 0 ;; esac
    case $given in */*) folder=${given%/*} ;; *) folder=. ;; esac
    die "$given is one part of a model, which needs them all." "Give the folder that holds them: MODEL_FILE=$folder"
}

# api_name NAME: llama-server takes a comma for the beginning of another name.
api_name() {
    case $1 in *,*) say "the model's name in the API is $(echo "$1" | tr , _)" ;; esac
    echo "$1" | tr , _
}

# models_in PATH: its GGUFs, one per line, with only the first shard of a split model, no importance matrices, and no
# projectors.
models_in() {
    if [ -d "$1" ]; then
        ggufs_in "$1" | while IFS= read -r file; do is_projector "$file" || echo "$file"; done
    else
        echo "$1"
    fi
}

ggufs_in() {
    find -L "$1" -maxdepth 2 -name '*.gguf' ! -name '*-of-*' ! -name '*.imatrix*' -o -name '*-00001-of-*.gguf' | sort
}

# projectors_in PATH: MMPROJ, or else the projectors of a folder, one per line.
projectors_in() {
    if [ -n "${MMPROJ:-}" ]; then
        [ -r "$MMPROJ" ] || die "$MMPROJ is not there, or cannot be read by user $(id -u)." "Give a GGUF: MMPROJ_FILE=path"
        is_projector "$MMPROJ" || die "$MMPROJ is not a projector (mmproj)." "Leave MMPROJ_FILE out to serve text alone."
        echo "$MMPROJ"
    elif [ -d "$1" ]; then
        ggufs_in "$1" | while IFS= read -r file; do ! is_projector "$file" || echo "$file"; done
    fi
}

# projector_of FILE: the first of the projectors that makes vectors of the width that this model reads; else nothing.
projector_of() {
    [ -z "$projectors" ] || echo "$projectors" | while IFS= read -r file; do
        [ "$(projection_of "$file")" != "$(gguf_number "$1" embedding_length)" ] || echo "$file"
    done | head -n 1
}

# mmproj_of FILE: the setting that names its projector, if it has one.
mmproj_of() {
    projector=$(projector_of "$1")
    [ -z "$projector" ] || echo "mmproj $projector"
}

# write_presets MODELS: for the router, a section of settings for each model that needs some; where there are projectors,
# a section for each model with its path, since the router would take them for models of the folder.
write_presets() {
    echo "$1" | while IFS= read -r file; do
        flags=$(flags_for "$file")
        [ -z "$projectors" ] || flags=$(echo "$flags"; echo "model $file"; mmproj_of "$file")
        [ -z "$flags" ] || { echo "[$(names_of "$file")]" && echo "$flags" | sed '/^$/d; s/ / = /'; }
    done
}

names_of() { echo "$1" | sed 's|.*/||; s|\.gguf$||; s|-00001-of-[0-9]*$||' | paste -sd ' ' -; }

check_models() {
    [ -n "$1" ] || die "nothing to serve: no model has been built yet." \
        "Build one: make build MODEL=org/name QUANT=Q4_K_M (or try: make demo), then type docker compose up again." \
        "Or name a file of yours: MODEL_FILE=path/to/model.gguf docker compose up"
    echo "$1" | while IFS= read -r file; do
        [ -e "$file" ] || die "$file is not there." "Give a GGUF that exists: MODEL_FILE=path/to/model.gguf"
        [ -r "$file" ] || die "$file cannot be read by user $(id -u)." "On the host, type: chmod a+r on that file"
        [ "$(head -c 4 "$file" | od -An -c | tr -d ' ')" = GGUF ] ||
            die "$file is not a GGUF, but begins with:$(head -c 4 "$file" | od -An -tx1)." "Build it again, or name another."
        ! is_encoder_decoder "$file" || die "$file is an encoder-decoder, which llama-server cannot run." \
            "Type: make serve; or docker compose -f compose.yaml -f compose.encoder-decoder.yaml up"
    done || exit 2
}

# Sets key_file and web_ui. A server that is reachable from other machines needs a key and has no web page.
protect() {
    key_file=${API_KEY_FILE:-/run/keys/api-key} web_ui=off
    if is_loopback "$BIND_ADDRESS"; then web_ui=${WEB_UI:-on}; fi
    if [ "${API_KEY:-}" = off ]; then
        is_loopback "$BIND_ADDRESS" ||
            die "API_KEY=off with BIND_ADDRESS=$BIND_ADDRESS would let anyone in." "Leave API_KEY out, or bind to 127.0.0.1."
        [ -n "${LLAMA_API_KEY:-}" ] || say "no API key is required: any program on this machine may use the model"
        key_file=""
        return
    fi
    if [ ! -e "$key_file" ]; then
        [ -z "${API_KEY_FILE:-}" ] || die "the key file $key_file is not there." "Mount one there, or leave API_KEY_FILE out."
        key_file=/tmp/api-key
        [ -e "$key_file" ] || "$here/make-key.sh" "$key_file" || die "no key can be made in /tmp." "Mount a tmpfs there."
        say "a key was made; read it with: docker exec CONTAINER cat $key_file"
    fi
    [ -r "$key_file" ] || die "the key file $key_file cannot be read by user $(id -u)." "Make it readable to that user alone."
    grep -q '[^[:space:]]' "$key_file" || die "the key file $key_file is empty." "Remove it, and a new one is made."
}

is_loopback() { case $1 in 127.* | ::1 | "[::1]" | localhost) true ;; *) false ;; esac }

# run PROGRAM ARGUMENTS…: without exec, so that this shell can explain it if the process is killed.
run() {
    say "$*"
    unset LLAMA_ARG_HOST LLAMA_ARG_PORT # llama-server would warn that --host and --port override them
    export LLAMA_ARG_CORS_ORIGINS="${LLAMA_ARG_CORS_ORIGINS-}" LLAMA_ARG_CORS_CREDENTIALS="${LLAMA_ARG_CORS_CREDENTIALS-0}"
    # How long a thread of libgomp spins before it sleeps; 1000 is what libgomp takes where threads outnumber cores. With
    # its usual 300000, threads that wait hold the cores that the others need: on a busy machine 100 times as slow.
    export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-1000}"
    late=/tmp/late-$$ changed=/tmp/changed-$$
    child="" stopping=""
    trap 'stopping=1; drain; end "$child"' TERM INT
    "$@" &
    child=$!
    [ -z "$stopping" ] || end "$child" # a signal came before there was a child
    watch_start "$child" &
    watch_files "$child" &
    code=0
    wait "$child" || code=$?
    while kill -0 "$child" 2>/dev/null; do # a signal ends the first wait, not the child
        code=0
        wait "$child" || code=$?
    done
    [ -z "$stopping" ] || exit 0
    explain "$code"
    exit "$code"
}

# drain: waits until no request is in progress, at most DRAIN_TIMEOUT. New ones are still answered: it takes a balancer a
# moment to send them elsewhere.
drain() {
    until=$(($(date +%s) + ${DRAIN_TIMEOUT:-0}))
    while [ "$(date +%s)" -lt "$until" ] && is_answering; do sleep 1; done
}

is_answering() {
    own_key "$key_file" | ask 5 "$address/metrics" | grep -q '^llamacpp:requests_\(processing\|deferred\) [1-9]'
}

# end PID: with SIGTERM llama-server waits for the answers in progress, however long they take; this gives them 2 seconds.
end() {
    kill -TERM "$1" 2>/dev/null || return 0
    (sleep 2; kill -KILL "$1") >/dev/null 2>&1 &
}

# watch_start PID: kills a server that does not become healthy in time. llama-server renders the chat template before it
# reports healthy, and a template may loop forever.
watch_start() {
    case $HOST in *.sock*) return 0 ;; esac
    command -v curl >/dev/null || return 0
    kib=$(du -Lck "${models%/*}"/*.gguf 2>/dev/null | tail -n 1 | cut -f 1)
    end=$(($(date +%s) + ${START_TIMEOUT:-$((120 + ${kib:-0} / 20480))}))
    until own_key "$key_file" | ask 5 --output /dev/null "$address/health"; do
        kill -0 "$1" 2>/dev/null || return 0
        [ "$(date +%s)" -lt "$end" ] || { : >"$late"; kill -KILL "$1"; return 0; }
        sleep 1
    done
}

# watch_files PID: ends the server when other files are in the folder than at its start (make serve MODEL=…), and Docker
# starts it anew: else the old model would answer, or names would stay listed whose files are gone.
watch_files() {
    [ -d "$MODEL" ] || return 0
    seen=$listed
    while sleep 2 && kill -0 "$1" 2>/dev/null; do
        now=$(listing)
        if [ "$now" != "$listed" ] && [ "$now" = "$seen" ] && ! is_being_written; then
            : >"$changed"
            end "$1"
            return 0
        fi
        seen=$now
    done
}

# Whether somebody may still be copying a file into the folder.
is_being_written() {
    [ -n "$(find -L "$MODEL" -maxdepth 2 -name '*.gguf' -newermt '-10 seconds' 2>/dev/null)" ]
}

# The GGUFs of a folder, as they are now.
listing() {
    [ ! -d "$MODEL" ] || find -L "$MODEL" -maxdepth 2 -name '*.gguf' -exec stat -Lc '%i %s %Y %n' {} + 2>/dev/null | sort
}

explain() {
    if [ -e "$changed" ]; then
        rm -f "$changed"
        say "other files are served from now on: $(names_of "$(models_in "$MODEL")"); starting anew"
        exit 0
    fi
    if [ -e "$late" ]; then
        rm -f "$late"
        say "error: llama-server did not become healthy in time, and was ended. Unless the disk is very slow, the model's"
        say "chat template loops forever: use another file, or build it here (make build detects such a template)."
        say "For a slow disk: START_TIMEOUT=3600"
        exit 2
    fi
    case $1 in
        0) ;;
        137)
            say "error: llama-server was killed: memory ran out."
            say "Give it more (MEMORY=8GiB), less to hold (CONTEXT_SIZE=2048, PARALLEL=1), or a smaller quant."
            exit 5
            ;;
        *)
            say "error: llama-server ended with exit code $1; its lines above say why."
            say "A file that does not load may be cut off or changed: compare its SHA-256 with manifest.json beside it."
            ;;
    esac
}

main "$@"
