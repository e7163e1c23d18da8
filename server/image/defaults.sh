# Defaults of settings that are not set, from the machine and the GGUF's metadata. Sourced by entrypoint.sh.
#
#   THREADS        one per physical core, at most the container's share of the CPU
#   PARALLEL       4 slots: requests answered at once; others wait
#   flags_for      what llama-server is told of a model that embeds texts or ranks documents
#   CONTEXT_SIZE   tokens shared by all slots: the model's training context for each slot, at most MAX_CONTEXT in all,
#                  and at most half of the memory that is left beside the model

DEFAULT_PARALLEL=4
MAX_CONTEXT=32768
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
    if [ -z "${PARALLEL:-}" ]; then
        PARALLEL=$DEFAULT_PARALLEL
        say "PARALLEL=$PARALLEL: requests answered at once"
    fi
    if [ -z "${CONTEXT_SIZE:-}" ] || [ "$CONTEXT_SIZE" = 0 ]; then
        CONTEXT_SIZE=$(echo "$1" | while IFS= read -r file; do context_for "$file" "$PARALLEL"; done | sort -n | head -n 1)
        say "CONTEXT_SIZE=$CONTEXT_SIZE: tokens for all of them, from the model's training context and the free memory"
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

# context_for FILE SLOTS: the default CONTEXT_SIZE in tokens.
context_for() {
    trained=$(gguf_number "$1" context_length)
    tokens=$((${trained:-4096} * $2))
    [ "$tokens" -le "$MAX_CONTEXT" ] || tokens=$MAX_CONTEXT
    per_token=$(kv_bytes_per_token "$1")
    if [ "$per_token" -gt 0 ]; then
        room=$((($(memory_bytes) - $(wc -c <"$1")) / 2 / per_token))
        [ "$tokens" -le "$room" ] || tokens=$room
    fi
    [ "$tokens" -ge "$MIN_CONTEXT" ] || tokens=$MIN_CONTEXT
    echo "$tokens"
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
    [ "$text" -le "$CONTEXT_SIZE" ] || text=$CONTEXT_SIZE
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
