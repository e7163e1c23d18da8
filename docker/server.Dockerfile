# The server image: upstream's llama-server, and four small scripts that make it safe to start.
# Built by `docker compose up`, or by `docker buildx bake -f docker/docker-bake.hcl`; the pin is in versions.env.

# ---- pins ------------------------------------------------------------------------------------------
ARG BASE
FROM ${BASE} AS server

# ---- code ------------------------------------------------------------------------------------------
USER root
COPY --chmod=0755 server/image/ /opt/quantyard/server/

# ---- runtime ---------------------------------------------------------------------------------------
# LLAMA_ARG_HOST and the like of upstream are left behind: the entrypoint says everything on the command line.
# LD_LIBRARY_PATH: upstream keeps its shared libraries beside the binary; the CUDA images have a value already.
ENV HOME=/tmp \
    LD_LIBRARY_PATH=/app${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} \
    LLAMA_SERVER=/app/llama-server \
    PORT=8080
WORKDIR /tmp
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=30s --start-period=600s --start-interval=1s --retries=3 \
    CMD ["/opt/quantyard/server/healthcheck.sh"]
ENTRYPOINT ["/opt/quantyard/server/entrypoint.sh"]
CMD []
USER 65532:65532

ARG BASE
ARG BASE_DIGEST=""
ARG IMAGE_TAG=""
ARG RECIPE=""
LABEL org.opencontainers.image.title="Quantyard server" \
      org.opencontainers.image.description="llama-server, hardened: serves GGUF models behind an OpenAI API" \
      org.opencontainers.image.version="${IMAGE_TAG}" \
      org.opencontainers.image.revision="" \
      org.opencontainers.image.base.name="${BASE}" \
      org.opencontainers.image.base.digest="${BASE_DIGEST}" \
      quantyard.recipe="${RECIPE}"

# ---- with a model inside: `make image` ----------------------------------------------------------------
# The same GGUF must give the same layer, whenever and on whatever base: times are set to zero, and --link makes the
# layer independent of what is below it. So new settings, or a new llama.cpp, push no model bytes again.
FROM ${BASE} AS model
USER root
ARG MODEL_NAME
SHELL ["/bin/sh", "-euc"]
RUN --mount=type=bind,from=gguf,target=/gguf \
    mkdir /model; \
    cp /gguf/model.gguf "/model/${MODEL_NAME}.gguf"; \
    if [ -e /gguf/mmproj.gguf ]; then cp /gguf/mmproj.gguf "/model/mmproj-${MODEL_NAME}.gguf"; fi; \
    chmod 0444 /model/*.gguf; \
    chmod 0555 /model; \
    touch -d @0 /model/*.gguf /model

FROM server AS served-model
COPY --link --from=model /model /model
USER 65532:65532
ARG SOURCE=""
ARG REVISION=""
ARG QUANT=""
ARG SHA256=""
ARG LICENSE=""
ARG MODEL_NAME
LABEL org.opencontainers.image.title="${MODEL_NAME}" \
      org.opencontainers.image.description="${MODEL_NAME} as GGUF (${QUANT}), served by llama-server" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="${LICENSE}" \
      quantyard.quant="${QUANT}" \
      quantyard.gguf.sha256="${SHA256}"
