# The eval image: our own slim Python, with llama.cpp compiled for it and everything that measures a model.
# Built by `docker buildx bake -f docker/docker-bake.hcl`, which takes every pin from versions.env.
# No `# syntax=` line: it would fetch a frontend from a registry; the one in BuildKit is enough.

# ---- pins ------------------------------------------------------------------------------------------
# No default: the pin lives in versions.env alone, and bake always gives one.
ARG BASE

# What llama.cpp is compiled in: of an older release, so that the wheel runs on this image's base and on most hosts.
ARG WHEELS_BASE

# ---- wheels that a site brings itself --------------------------------------------------------------
# Empty; bake's WHEELS=folder takes its place. If that holds anything, nothing is downloaded and nothing compiled.
FROM scratch AS brought

# ---- llama.cpp, compiled ---------------------------------------------------------------------------
FROM ${WHEELS_BASE} AS compiled
USER root
SHELL ["/bin/sh", "-euc"]
# The wheel is kept in a cache of its own, by all that decides its content, so that a new base image compiles nothing.
# The compiler comes with apt, which knows proxies in small letters only. PIP_VERBOSE: pip hides ninja's lines else.
# extra_ca: the CA of a TLS-inspecting proxy, added to the system's own. It is joined in a tmpfs and
#   gone after this step; a plain COPY would leave a private CA in a layer.
# pip_conf: a company mirror, often with a password in its URL.
RUN --mount=type=bind,source=docker/compile-wheels.sh,target=/build/docker/compile-wheels.sh \
    --mount=type=bind,source=docker/llama-cpp.cmake,target=/build/docker/llama-cpp.cmake \
    --mount=type=bind,source=locks/build.txt,target=/build/locks/build.txt \
    --mount=type=bind,source=locks/sdists.txt,target=/build/locks/sdists.txt \
    --mount=type=cache,target=/var/cache/quantyard,sharing=locked \
    --mount=type=tmpfs,target=/run/quantyard \
    --mount=type=secret,id=extra_ca \
    --mount=type=secret,id=pip_conf \
    key=$( (cat /build/*/*; uname -m; . /etc/os-release; echo "$ID $VERSION_ID") | sha256sum | cut -c 1-16); \
    kept=/var/cache/quantyard/$key; \
    if [ ! -d "$kept" ]; then \
        if [ -s /run/secrets/extra_ca ]; then \
            for ca in /etc/ssl/certs/ca-certificates.crt /run/secrets/extra_ca; do \
                if [ -s "$ca" ]; then cat "$ca"; echo; fi; \
            done > /run/quantyard/ca.pem; \
            export PIP_CERT=/run/quantyard/ca.pem; \
        fi; \
        if [ -s /run/secrets/pip_conf ]; then export PIP_CONFIG_FILE=/run/secrets/pip_conf; fi; \
        export http_proxy="${http_proxy:-${HTTP_PROXY-}}" https_proxy="${https_proxy:-${HTTPS_PROXY-}}"; \
        apt-get -qq update; \
        DEBIAN_FRONTEND=noninteractive apt-get -y -qq --no-install-recommends install g++ >/dev/null; \
        rm -rf "$kept.new"; \
        PIP_VERBOSE=2 /build/docker/compile-wheels.sh "$kept.new"; \
        mv "$kept.new" "$kept"; \
    fi; \
    cp -r "$kept" /wheels

# What bake's target compiled-wheels writes to a folder; bake's COMPILED=folder or WHEELS=folder takes its place.
FROM scratch AS compiled-wheels
COPY --from=compiled /wheels /

# ---- all other wheels ------------------------------------------------------------------------------
# The packages of pure Python without a wheel are built here, in seconds; nothing else is built from source.
FROM ${BASE} AS collected
USER root
SHELL ["/bin/sh", "-euc"]
RUN --mount=type=bind,source=locks/eval.txt,target=/build/eval.txt \
    --mount=type=bind,source=docker/compile-wheels.sh,target=/pure/docker/compile-wheels.sh \
    --mount=type=bind,source=docker/pure-wheels.sh,target=/pure/docker/pure-wheels.sh \
    --mount=type=bind,source=locks/build.txt,target=/pure/locks/build.txt \
    --mount=type=bind,source=locks/pure-sdists.txt,target=/pure/locks/pure-sdists.txt \
    --mount=type=bind,from=compiled-wheels,target=/compiled \
    --mount=type=bind,from=brought,target=/brought \
    --mount=type=cache,target=/root/.cache/pip,sharing=locked \
    --mount=type=tmpfs,target=/run/quantyard \
    --mount=type=secret,id=extra_ca \
    --mount=type=secret,id=pip_conf \
    mkdir -p /wheels; \
    if [ -n "$(ls /brought)" ]; then exit 0; fi; \
    if [ -s /run/secrets/extra_ca ]; then \
        for ca in /etc/ssl/certs/ca-certificates.crt /run/secrets/extra_ca; do \
            if [ -s "$ca" ]; then cat "$ca"; echo; fi; \
        done > /run/quantyard/ca.pem; \
        export PIP_CERT=/run/quantyard/ca.pem; \
    fi; \
    if [ -s /run/secrets/pip_conf ]; then export PIP_CONFIG_FILE=/run/secrets/pip_conf; fi; \
    python3 -m pip download -q --disable-pip-version-check --cache-dir /root/.cache/pip --require-hashes \
        --only-binary :all: --find-links /compiled --dest /wheels -r /compiled/compiled.txt -r /build/eval.txt; \
    cp /compiled/compiled.txt /wheels/; \
    bash /pure/docker/pure-wheels.sh /wheels

# What bake's target eval-wheels writes to a folder, for WHEELS on a machine without a network.
FROM scratch AS wheels
COPY --from=collected /wheels /

# ---- dependencies ----------------------------------------------------------------------------------
FROM ${BASE} AS eval
# Upstream's last USER is root, but its default is not ours to rely on.
USER root
SHELL ["/bin/sh", "-euc"]
# A directory of their own, the same whoever made the base image. Without a network: all there is was collected.
# --no-compile: pip would note its temporary directory as the source of every line of a traceback.
# bin, include, lib: commands that nobody types here, and a second copy of what is in llama_cpp/. sympy's tests: 20 MB.
# glibc-hwcaps: the kernels for AVX-512. Without them all machines compute with the same instructions, so that scores do
#   not depend on where they were measured.
RUN --network=none \
    --mount=type=bind,source=locks/eval.txt,target=/build/eval.txt \
    --mount=type=bind,from=collected,source=/wheels,target=/collected \
    --mount=type=bind,from=brought,target=/brought \
    wheels=/collected; \
    if [ -n "$(ls /brought)" ]; then wheels=/brought; fi; \
    python3 -m pip install --no-compile --disable-pip-version-check --root-user-action ignore --no-cache-dir \
        --no-index --find-links "$wheels" --require-hashes --only-binary :all: \
        --target /opt/quantyard/lib -r "$wheels/compiled.txt" -r /build/eval.txt; \
    rm -rf /opt/quantyard/lib/llama_cpp/lib/glibc-hwcaps; \
    rm -rf /opt/quantyard/lib/bin /opt/quantyard/lib/include /opt/quantyard/lib/lib; \
    find /opt/quantyard/lib/sympy -type d -name tests -prune -exec rm -rf {} +; \
    python3 -m compileall -q -j 0 -x '/tests/' --invalidation-mode unchecked-hash /opt/quantyard/lib || true

# ---- code ------------------------------------------------------------------------------------------
# Only what a stage may import: the eval package, and the rooms that both sides share (engines/images.py: SHARED).
COPY eval/ /opt/quantyard/src/eval/
COPY quantyard/__init__.py /opt/quantyard/src/quantyard/
COPY quantyard/formats/ /opt/quantyard/src/quantyard/formats/
COPY quantyard/formatting/ /opt/quantyard/src/quantyard/formatting/
COPY quantyard/hardware/ /opt/quantyard/src/quantyard/hardware/
COPY quantyard/llama/ /opt/quantyard/src/quantyard/llama/
COPY quantyard/metrics/ /opt/quantyard/src/quantyard/metrics/
COPY quantyard/network/ /opt/quantyard/src/quantyard/network/
COPY quantyard/protocol/ /opt/quantyard/src/quantyard/protocol/
COPY quantyard/sandbox/ /opt/quantyard/src/quantyard/sandbox/
# Compiled here because the stage's file system is read-only; unchecked, so a start reads no source.
RUN python3 -m compileall -q --invalidation-mode unchecked-hash /opt/quantyard/src

# ---- runtime ---------------------------------------------------------------------------------------
# HOME: the uid of a stage has no entry in /etc/passwd, and the engine mounts a tmpfs on /tmp, the only place that
# can be written to beside /out; so the libraries' caches are there. MPLBACKEND: no display, and no search for one.
# GOMP_SPINCOUNT: a thread that waits for another soon sleeps (OpenMP's own choice where cores are short). Else one
# that waits keeps the one waited for off its core: beside other work all is several times slower,
# alone nothing is faster.
ENV PYTHONPATH=/opt/quantyard/lib:/opt/quantyard/src \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    HF_HOME=/tmp/huggingface \
    LM_HARNESS_CACHE_PATH=/tmp/lm-eval \
    MPLCONFIGDIR=/tmp/matplotlib \
    MPLBACKEND=agg \
    GOMP_SPINCOUNT=1000 \
    HF_HUB_DISABLE_TELEMETRY=1

# `python -m` looks in the working directory first: a place that holds no module and nobody can write.
WORKDIR /opt/quantyard
# The base starts a Python prompt.
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
LABEL org.opencontainers.image.title="Quantyard eval" \
      org.opencontainers.image.description="Measure GGUF models against their unquantized baseline" \
      org.opencontainers.image.version="${IMAGE_TAG}" \
      org.opencontainers.image.revision="" \
      org.opencontainers.image.base.name="${BASE}" \
      org.opencontainers.image.base.digest="${BASE_DIGEST}" \
      quantyard.recipe="${RECIPE}"
