# The image of the contract test: the builder image, with the server's own scripts and the checks beside them. So the
# llama-server that is put to the test is the one of the same llama.cpp, started by the same entrypoint as in the
# server image; that one has no Python to test itself with. Before it stands the proxy of compose.yaml, with its own
# libraries: its image and the builder's are of different releases.
ARG BUILDER=builder
ARG PROXY
FROM ${PROXY} AS proxy

FROM ${BUILDER} AS contract

USER root
COPY --from=proxy /usr/sbin/nginx /opt/proxy/usr/sbin/nginx
COPY --from=proxy /usr/lib /opt/proxy/usr/lib
RUN loader=$(echo /opt/proxy/usr/lib/*/ld-linux-*.so.*); \
    printf '#!/bin/sh\nexec %s --library-path %s /opt/proxy/usr/sbin/nginx "$@"\n' "$loader" "${loader%/*}" >/opt/proxy/nginx; \
    chmod 0755 /opt/proxy/nginx; \
    /opt/proxy/nginx -v
COPY server/ /opt/quantyard/src/server/
COPY quantyard/__init__.py /opt/quantyard/src/quantyard/
COPY quantyard/formats/ /opt/quantyard/src/quantyard/formats/
COPY quantyard/formatting/ /opt/quantyard/src/quantyard/formatting/
COPY quantyard/hardware/ /opt/quantyard/src/quantyard/hardware/
COPY quantyard/llama/ /opt/quantyard/src/quantyard/llama/
COPY quantyard/metrics/ /opt/quantyard/src/quantyard/metrics/
COPY quantyard/protocol/ /opt/quantyard/src/quantyard/protocol/
RUN python3 -m compileall -q --invalidation-mode unchecked-hash /opt/quantyard/src

# Where the proxy's files look for one another; the key is written when a test begins, to a tmpfs.
RUN mkdir /etc/quantyard; \
    ln -s /opt/quantyard/src/server/proxy /opt/quantyard/src/server/limits/request_limits.json /etc/quantyard/; \
    mkdir -p /run/keys; \
    ln -s /tmp/proxy-key /run/keys/api-key
ENV SERVER_ENTRYPOINT=/opt/quantyard/src/server/image/entrypoint.sh \
    PROXY_NGINX=/opt/proxy/nginx \
    PROXY_ROOT=/opt/proxy \
    PROXY_KEY_FILE=/tmp/proxy-key
ENTRYPOINT []
USER 65532:65532

ARG IMAGE_TAG=""
ARG RECIPE=""
LABEL org.opencontainers.image.title="Quantyard contract test" \
      org.opencontainers.image.description="Serves a GGUF to itself and checks every promise of the API" \
      org.opencontainers.image.version="${IMAGE_TAG}" \
      quantyard.recipe="${RECIPE}"
