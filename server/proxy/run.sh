#!/bin/sh
# Starts the proxy: nginx, as an unprivileged user on a read-only root.
set -eu
ulimit -n "$(ulimit -Hn)" # each connection takes two files
mkdir -p /tmp/body
rm -f /tmp/inner.sock # left by a killed process
exec nginx -c /etc/quantyard/proxy/nginx.conf
