# Defaults of settings that are not set, from the machine and the GGUF's metadata. Sourced by entrypoint.sh.
#
#   THREADS        one per physical core, at most the container's share of the CPU
#   KEPT           of several models, those that stay loaded: at most 4, and as many as leave a context of use to each
#   PARALLEL       slots, requests answered at once; others wait: at most 4, and as many as have a context of use
#   CONTEXT_SIZE   tokens of all slots together, each having an equal part: the model's training context for each slot, at
#                  most MAX_CONTEXT in all, and at most half of the memory that is left beside the models that stay loaded
#   flags_for      what llama-server is told of a model that embeds texts or ranks documents
#
# quantyard/serve/context.py decides alike for ENGINE=local.

DEFAULT_PARALLEL=4
DEFAULT_KEPT=4
MAX_CONTEXT=32768
USEFUL_CONTEXT=2048 # tokens that a slot has before there is another slot, or another model stays loaded
MIN_CONTEXT=512
MAX_TEXT=4096 # tokens of a text to embed, which is computed at once; LLAMA_ARG_UBATCH changes it
CGROUP=/sys/fs/cgroup
TENSORS_BYTES=33554432 # and the names of its tensors after it
HEAD_BYTES=65536 # a GGUF has the numbers of the architecture before the vocabulary

# decide MODELS: sets the settings that are not set, and logs the reasons.
decide() {
    if [ -z "${THREADS:-}" ]; then
        THREADS=$(cores)
        say "THREADS=$THREADS: cores this container may use"
    fi
    [ "${CONTEXT_SIZE:-0}" -gt 0 ] || CONTEXT_SIZE=""
    given=$CONTEXT_SIZE
    weigh "$1"
    [ "$(echo "$1" | wc -l)" -eq 1 ] || decide_kept "$(echo "$1" | wc -l)"
    if [ -z "${PARALLEL:-}" ]; then
        PARALLEL=$DEFAULT_PARALLEL
        until [ "$PARALLEL" -eq 1 ] || is_useful "$KEPT" "$PARALLEL"; do PARALLEL=$((PARALLEL - 1)); done
        fewer=""
        [ "$PARALLEL" -eq "$DEFAULT_PARALLEL" ] || fewer="; with more of them, each would have fewer than $USEFUL_CONTEXT tokens"
        say "PARALLEL=$PARALLEL: requests answered at once$fewer"
    fi
    [ -n "$given" ] || CONTEXT_SIZE=$(context_with "$KEPT" "$PARALLEL")
    [ "$CONTEXT_SIZE" -ge "$MIN_CONTEXT" ] || [ -n "$given" ] || CONTEXT_SIZE=$MIN_CONTEXT
    origin="from the model's training context and the free memory"
    [ -z "$given" ] || origin="their equal parts of what was set; PARALLEL=1 gives all to one"
    say "CONTEXT_SIZE=$CONTEXT_SIZE: $((CONTEXT_SIZE / PARALLEL)) tokens for each of them at the same time, $origin"
}

# decide_kept COUNT: how many of so many models stay loaded.
decide_kept() {
    KEPT=${LLAMA_ARG_MODELS_MAX:-}
    if [ -n "$KEPT" ]; then
        [ "$KEPT" -gt 0 ] && [ "$KEPT" -le "$1" ] || KEPT=$1
        return
    fi
    most=$DEFAULT_KEPT
    [ "$most" -le "$1" ] || most=$1
    KEPT=$most
    until [ "$KEPT" -eq 1 ] || is_room "$KEPT"; do KEPT=$((KEPT - 1)); done
    say "models loaded at once: $KEPT of $1, which share the memory for contexts"
    [ "$KEPT" -eq "$most" ] ||
        say "$((memory / 1048576)) MiB are too little for more of them. For more: MEMORY, smaller quants, or CONTEXT_SIZE=2048"
    [ "$KEPT" -eq "$1" ] || say "a request for another model waits until one is idle, and until that is exchanged for it"
}

# weigh MODELS: sets KEPT=1, memory, and of each model its size and the bytes of its cache per token; and the training context
# that all models which generate text have, in tokens.
weigh() {
    KEPT=1 memory=$(memory_bytes)
    sizes=$(of_each weight_bytes "$1")
    caches=$(of_each kv_bytes_per_token "$1")
    trained=$(of_each trained_context "$1" | sort -n | head -n 1)
    trained=${trained:-$(gguf_number "$(echo "$1" | head -n 1)" context_length)}
    trained=${trained:-4096}
}

of_each() { echo "$2" | while IFS= read -r file; do "$1" "$file"; done; }

# sum_of_largest COUNT: of the numbers on stdin.
sum_of_largest() { echo $(($(sort -rn | head -n "$1" | paste -sd + -))); }

weight_bytes() {
    case $1 in
        *-00001-of-*.gguf) stat -Lc %s "${1%-00001-of-*}"-?????-of-"${1##*-of-}" | sum_of_largest 100000 ;;
        *) wc -c <"$1" ;;
    esac
}

trained_context() {
    [ "$(purpose_of "$1")" != generate ] || gguf_number "$1" context_length
}

# context_with KEPT SLOTS: the tokens of all slots of each model, with so many models loaded.
context_with() {
    tokens=$((trained * $2))
    [ "$tokens" -le "$MAX_CONTEXT" ] || tokens=$MAX_CONTEXT
    room=$(room_with "$1")
    [ -z "$room" ] || [ "$tokens" -le "$room" ] || tokens=$room
    echo "$tokens"
}

# room_with KEPT: the tokens for which there is memory in each of so many models; empty if the metadata does not tell.
room_with() {
    per_token=$(echo "$caches" | sum_of_largest "$1")
    left=$(((memory - $(echo "$sizes" | sum_of_largest "$1")) / 2))
    if [ "$left" -le 0 ]; then
        echo 0
    elif [ "$per_token" -gt 0 ]; then
        echo $((left / per_token))
    fi
}

# is_useful KEPT SLOTS: whether each slot of each loaded model has USEFUL_CONTEXT tokens, its training context or, where very
# many slots are asked for, its part of MAX_CONTEXT.
is_useful() {
    wanted=$USEFUL_CONTEXT
    [ "$wanted" -le "$trained" ] || wanted=$trained
    wanted=$((wanted * $2))
    [ "$wanted" -le "$MAX_CONTEXT" ] || wanted=$MAX_CONTEXT
    [ "${given:-$(context_with "$1" "$2")}" -ge "$wanted" ]
}

# is_room KEPT: whether so many models can be loaded with the context that is set, or one of use.
is_room() {
    if [ -n "$given" ]; then
        room=$(room_with "$1")
        [ "$given" -le "${room:-$given}" ]
    else
        is_useful "$1" "${PARALLEL:-$DEFAULT_PARALLEL}"
    fi
}

cores() {
    physical=$(cat /sys/devices/system/cpu/cpu[0-9]*/topology/thread_siblings_list 2>/dev/null | sort -u | wc -l)
    allowed=$(nproc)
    share=$(cpu_share)
    [ "${share:-$allowed}" -ge "$allowed" ] || allowed=$share
    [ "$physical" -gt 0 ] && [ "$physical" -le "$allowed" ] || physical=$allowed
    echo "$physical"
}

# The container's CPU limit in cores, rounded up; empty without a limit. cgroup v2, then v1.
cpu_share() {
    quota=max period=""
    if [ -r "$CGROUP/cpu.max" ]; then
        read -r quota period <"$CGROUP/cpu.max"
    elif [ -r "$CGROUP/cpu/cpu.cfs_quota_us" ]; then
        read -r quota <"$CGROUP/cpu/cpu.cfs_quota_us"
        read -r period <"$CGROUP/cpu/cpu.cfs_period_us"
    fi
    case $quota in
        max | -1) ;;
        *) echo $(((quota + period - 1) / period)) ;;
    esac
}

# kv_bytes_per_token FILE: bytes of an f16 KV cache; 0 if the metadata has no single number (layers that differ).
kv_bytes_per_token() {
    layers=$(gguf_number "$1" block_count)
    kv_heads=$(gguf_number "$1" attention.head_count_kv)
    key_length=$(gguf_number "$1" attention.key_length)
    value_length=$(gguf_number "$1" attention.value_length)
    if [ -z "$key_length" ]; then
        heads=$(gguf_number "$1" attention.head_count)
        embedding=$(gguf_number "$1" embedding_length)
        if [ "${heads:-0}" -eq 0 ] || [ -z "$embedding" ]; then
            echo 0
            return
        fi
        key_length=$((embedding / heads))
    fi
    echo $((${layers:-0} * ${kv_heads:-0} * (key_length + ${value_length:-$key_length}) * 2))
}

# gguf_number FILE KEY: the value of `<architecture>.KEY` if it is one 32-bit number (type 4 or 5 of gguf.h), else empty.
# The byte after the key is its type, so that head_count does not match head_count_kv.
gguf_number() {
    value=$(gguf_bytes "$1" "$2" "$(printf '\004\005')" 0 4)
    case $value in
        "" | ????????*) ;; # eight digits or more cannot be a number of layers, heads or tokens
        *) echo "$value" ;;
    esac
}

# gguf_bytes FILE KEY TYPES SKIP COUNT: so many bytes of the value as a number, if it has one of these types, else empty.
gguf_bytes() {
    pattern="[a-z0-9_-]*[.]$(echo "$2" | sed 's/[.]/[.]/g')[$3]"
    found=$(head -c "$HEAD_BYTES" "$1" | LC_ALL=C grep -abo "$pattern" | head -n 1)
    [ -n "$found" ] || return 0
    key=${found#*:}
    od -An "-tu$5" -j $((${found%%:*} + ${#key} + 3 + $4)) -N "$5" "$1" | tr -d ' '
}

# purpose_of FILE: generate, embed or rerank, as formats/purpose.py tells them apart.
purpose_of() {
    pooling=$(gguf_number "$1" pooling_type)
    if [ "$pooling" = 4 ] || has_one_score "$1"; then
        echo rerank
    elif [ "${pooling:-0}" -gt 0 ] || [ "$(gguf_bytes "$1" attention.causal "$(printf '\007')" 0 1)" = 0 ]; then
        echo embed
    else
        echo generate
    fi
}

# has_one_score FILE: whether it has the head of a reranker, by the labels or else the name of the tensor.
has_one_score() {
    labels=$(gguf_bytes "$1" classifier.output_labels "$(printf '\011')" 4 8)
    [ "${labels:-1}" = 1 ] && head -c "$TENSORS_BYTES" "$1" | LC_ALL=C grep -aq 'cls[.]\(output[.]\)\{0,1\}weight'
}

# flags_for FILE: the settings of llama-server that this model needs, "name value" on a line each.
flags_for() {
    purpose=$(purpose_of "$1")
    case $purpose in
        generate) return 0 ;;
        rerank) echo "reranking true" ;;
        embed) echo "embeddings true" && echo "pooling $(pooling_of "$1")" ;;
    esac
    [ -z "${LLAMA_ARG_UBATCH:-}" ] || return 0
    text=$(gguf_number "$1" context_length)
    text=${text:-512}
    [ "$text" -le "$MAX_TEXT" ] || text=$MAX_TEXT
    [ "$text" -le "$((CONTEXT_SIZE / PARALLEL))" ] || text=$((CONTEXT_SIZE / PARALLEL))
    echo "batch-size $text"
    echo "ubatch-size $text"
}

# pooling_of FILE: how it makes one vector of a text, as --pooling takes it; where it does not say, the mean.
pooling_of() {
    case $(gguf_number "$1" pooling_type) in
        2) echo cls ;;
        3) echo last ;;
        *) echo mean ;;
    esac
}

# is_projector FILE: whether it reads pictures or sound for a model (mmproj).
is_projector() { head -c "$HEAD_BYTES" "$1" 2>/dev/null | LC_ALL=C grep -aq 'clip[.]has_[a-z]*_encoder'; }

# projection_of FILE: the numbers of the vectors that a projector makes.
projection_of() {
    found=$(gguf_number "$1" vision.projection_dim)
    echo "${found:-$(gguf_number "$1" audio.projection_dim)}"
}

# is_encoder_decoder FILE: whether its architecture is t5, that of FLAN-T5, mT5 and MADLAD.
is_encoder_decoder() { head -c "$HEAD_BYTES" "$1" | LC_ALL=C grep -aq "[^a-z0-9_-]t5[.]block_count"; }

# The memory limit of the container, or the available memory of the machine if that is less.
memory_bytes() {
    available=$(($(sed -n 's/^MemAvailable: *\([0-9]*\) kB/\1/p' /proc/meminfo) * 1024))
    for file in "$CGROUP/memory.max" "$CGROUP/memory/memory.limit_in_bytes"; do # cgroup v2, v1
        limit=max
        [ ! -r "$file" ] || read -r limit <"$file"
        [ "$limit" = max ] || [ "$limit" -ge "$available" ] || available=$limit
    done
    echo "$available"
}
