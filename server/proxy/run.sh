#!/bin/sh
# Starts the proxy: nginx, as an unprivileged user on a read-only root.
#
# Environment:
#   MODEL_ADDRESS   where the model's server, or the balancer, answers, if that is not model:8080 of Docker's names
#   DRAIN_TIMEOUT   seconds that a stop waits for the answers in progress; default 4
set -eu
ulimit -n "$(ulimit -Hn)" # each connection takes two files
mkdir -p /tmp/body
rm -f /tmp/inner.sock # left by a killed process
address=${MODEL_ADDRESS:-model:8080 resolve}
sed "s|server model:8080 resolve|server $address|
    s|^worker_shutdown_timeout 4s|worker_shutdown_timeout ${DRAIN_TIMEOUT:-4}s|
    s|include errors|include /etc/quantyard/proxy/errors|" /etc/quantyard/proxy/nginx.conf >/tmp/nginx.conf
exec nginx -c /tmp/nginx.conf
