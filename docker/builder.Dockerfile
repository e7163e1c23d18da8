# The builder image: upstream's llama.cpp tools and converter, and our stages beside them.
# Built by `docker buildx bake -f docker/docker-bake.hcl`, which takes every pin from versions.env.
# No `# syntax=` line: it would fetch a frontend from a registry; the one in BuildKit is enough.

# ---- pins ------------------------------------------------------------------------------------------
# No default: the pin lives in versions.env alone, and bake always gives one.
ARG BASE
FROM ${BASE} AS builder

# Upstream's last USER is root, but its default is not ours to rely on.
USER root
SHELL ["/bin/sh", "-euc"]

# ---- dependencies ----------------------------------------------------------------------------------
# A directory of their own, for our process alone: upstream's converter needs an older huggingface_hub
# than we do, so the two must not meet in site-packages (and pip may not write there, PEP 668).
# extra_ca: the CA of a TLS-inspecting proxy, added to the system's own. It is joined in a tmpfs and
#   gone after this step; a plain COPY would leave a private CA in a layer.
# pip_conf: a company mirror, often with a password in its URL.
# --no-compile: pip would note its temporary directory as the source of every line of a traceback.
# --no-warn-conflicts: that ours differ from the system's packages is the point of the directory.
# The converter is compiled too: it runs on a read-only file system, so it would compile at every start.
# The transformers that the converter was made for lies apart too, whatever the base has: builder/llama/converter.py puts
# it in front where a model needs it. Without its dependencies: the base has them.
RUN --mount=type=bind,source=locks/builder.txt,target=/build/builder.txt \
    --mount=type=bind,source=locks/converter.txt,target=/build/converter.txt \
    --mount=type=cache,target=/root/.cache/pip,sharing=locked \
    --mount=type=tmpfs,target=/run/quantyard \
    --mount=type=secret,id=extra_ca \
    --mount=type=secret,id=pip_conf \
    if [ -s /run/secrets/extra_ca ]; then \
        for ca in /etc/ssl/certs/ca-certificates.crt /run/secrets/extra_ca; do \
            if [ -s "$ca" ]; then cat "$ca"; echo; fi; \
        done > /run/quantyard/ca.pem; \
        export PIP_CERT=/run/quantyard/ca.pem; \
    fi; \
    if [ -s /run/secrets/pip_conf ]; then export PIP_CONFIG_FILE=/run/secrets/pip_conf; fi; \
    python3 -m pip install --no-compile --no-warn-conflicts --disable-pip-version-check --root-user-action ignore \
        --cache-dir /root/.cache/pip --require-hashes --only-binary :all: --target /opt/quantyard/lib -r /build/builder.txt; \
    python3 -m pip install --no-compile --no-deps --no-warn-conflicts --disable-pip-version-check --root-user-action ignore \
        --cache-dir /root/.cache/pip --require-hashes --only-binary :all: --target /opt/quantyard/transformers-4.57 -r /build/converter.txt; \
    python3 -m compileall -q --invalidation-mode unchecked-hash /opt/quantyard/lib /opt/quantyard/transformers-4.57; \
    python3 -m compileall -q --invalidation-mode unchecked-hash /app/conversion /app/gguf-py || true

# ---- code ------------------------------------------------------------------------------------------
# Only what a stage may import: the builder package, and the rooms that both sides share (engines/images.py: SHARED).
COPY builder/ /opt/quantyard/src/builder/
COPY quantyard/__init__.py /opt/quantyard/src/quantyard/
COPY quantyard/formats/ /opt/quantyard/src/quantyard/formats/
COPY quantyard/formatting/ /opt/quantyard/src/quantyard/formatting/
COPY quantyard/hardware/ /opt/quantyard/src/quantyard/hardware/
COPY quantyard/llama/ /opt/quantyard/src/quantyard/llama/
COPY quantyard/network/ /opt/quantyard/src/quantyard/network/
COPY quantyard/protocol/ /opt/quantyard/src/quantyard/protocol/
COPY quantyard/sandbox/ /opt/quantyard/src/quantyard/sandbox/
# Compiled here because the stage's file system is read-only; unchecked, so a start reads no source.
RUN python3 -m compileall -q --invalidation-mode unchecked-hash /opt/quantyard/src

# ---- runtime ---------------------------------------------------------------------------------------
# HOME: the uid of a stage has no entry in /etc/passwd, and the engine mounts a tmpfs on /tmp.
# LD_LIBRARY_PATH: upstream keeps its shared libraries beside the binaries; the CUDA images have a value already.
ENV PYTHONPATH=/opt/quantyard/lib:/opt/quantyard/src \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    LD_LIBRARY_PATH=/app${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} \
    LLAMA_BIN=/app \
    LLAMA_CONVERTER=/app/convert_hf_to_gguf.py \
    LLAMA_LORA_CONVERTER=/app/convert_lora_to_gguf.py \
    CONVERTER_PYTHON=/usr/bin/python3 \
    CONVERTER_PACKAGES=/opt/quantyard/transformers-4.57 \
    HF_HUB_DISABLE_TELEMETRY=1

# `python -m` looks in the working directory first: a place that holds no module and nobody can write.
WORKDIR /opt/quantyard
# Upstream's entrypoint is a menu of verbs (tools.sh) without ours; its healthcheck, if any, is a server's.
ENTRYPOINT []
CMD []
HEALTHCHECK NONE
# The engine gives the caller's uid; whoever runs the image by hand is nobody, not root.
USER 65532:65532

# Last, so that another label never repeats a step above.
ARG BASE
ARG BASE_DIGEST=""
ARG IMAGE_TAG=""
ARG RECIPE=""
LABEL org.opencontainers.image.title="Quantyard builder" \
      org.opencontainers.image.description="Fetch, convert, calibrate, quantize and verify language models as GGUF" \
      org.opencontainers.image.version="${IMAGE_TAG}" \
      org.opencontainers.image.revision="" \
      org.opencontainers.image.base.name="${BASE}" \
      org.opencontainers.image.base.digest="${BASE_DIGEST}" \
      quantyard.recipe="${RECIPE}"
