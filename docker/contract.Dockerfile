# The image of the contract test: the builder image, with the server's own scripts and the checks beside them. So the
# llama-server that is put to the test is the one of the same llama.cpp, started by the same entrypoint as in the
# server image; that one has no Python to test itself with.
ARG BUILDER=builder
FROM ${BUILDER} AS contract

USER root
COPY server/ /opt/quantyard/src/server/
COPY pipeline/__init__.py pipeline/contract.py pipeline/finite_json.py pipeline/names.py pipeline/printable.py pipeline/stage.py pipeline/serving.py \
     /opt/quantyard/src/pipeline/
RUN python3 -m compileall -q --invalidation-mode unchecked-hash /opt/quantyard/src

ENV SERVER_ENTRYPOINT=/opt/quantyard/src/server/entrypoint.sh
ENTRYPOINT []
USER 65532:65532

ARG IMAGE_TAG=""
ARG RECIPE=""
LABEL org.opencontainers.image.title="Quantyard contract test" \
      org.opencontainers.image.description="Serves a GGUF to itself and checks every promise of the API" \
      org.opencontainers.image.version="${IMAGE_TAG}" \
      quantyard.recipe="${RECIPE}"
