#!/bin/sh
# Starts the proxy: nginx, as an unprivileged user on a read-only root.
set -eu
ulimit -n "$(ulimit -Hn)" # two for each connection
mkdir -p /tmp/body
rm -f /tmp/inner.sock # of a process that was killed
exec nginx -c /etc/quantyard/proxy/nginx.conf
