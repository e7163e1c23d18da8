#!/bin/sh
# Make an API key if there is none, readable only by its owner.
#
# Usage:  make-key.sh FILE           one key file, owned by the current user
#         make-key.sh FILE UID COPY  also a copy for user UID; FILE belongs to the owner of its folder.
#                                    compose.yaml uses this: people read FILE, the server reads COPY. Beside COPY it
#                                    writes first-key, for programs that take a file with one key.
set -eu
file=$1
umask 077

if [ ! -s "$file" ]; then
    key=$(od -An -N 24 -tx1 /dev/urandom | tr -d ' \n')
    temporary=$file.$$
    echo "qy-$key" >"$temporary"
    mv "$temporary" "$file"
    [ $# -eq 1 ] || chown "$(stat -c %u:%g "$(dirname "$file")")" "$file"
    echo "[keys] made $file" >&2
fi
if [ $# -eq 3 ]; then
    first=$(dirname "$3")/first-key
    cp "$file" "$3"
    grep -v '^#' "$file" | grep -m 1 . >"$first" || true # an empty file is the server's to refuse
    chown "$2" "$3" "$first"
fi
