# How the images are built. Pins come from versions.env through the environment; none is repeated here.
#
#   set -a; . ./versions.env; set +a
#   docker buildx bake -f docker/docker-bake.hcl --load            # for this machine
#   docker buildx bake -f docker/docker-bake.hcl --push release    # every platform, with SBOM and provenance
#
# For a machine without a network: the first line on one that has it fills artifacts/wheels, the second needs only its base.
#
#   docker buildx bake -f docker/docker-bake.hcl eval-wheels
#   WHEELS=artifacts/wheels docker buildx bake -f docker/docker-bake.hcl --load eval
#
# To add an image: add docker/<name>.Dockerfile (last stage: <name>), a target <name>, its
# `<name>-release`, and both to the groups.

# ---- pins, from versions.env -----------------------------------------------------------------------
variable "LLAMA_CPP_IMAGE" { default = "" }
variable "LLAMA_CPP_TAG" { default = "" }
variable "LLAMA_CPP_SERVER_TAG" { default = "" }
variable "EVAL_BASE_IMAGE" { default = "" }
variable "EVAL_BASE_TAG" { default = "" }
variable "WHEELS_BASE_IMAGE" { default = "" }
variable "WHEELS_BASE_TAG" { default = "" }
variable "PROXY_IMAGE" { default = "" }
variable "PROXY_TAG" { default = "" }

# ---- choices of the caller -------------------------------------------------------------------------
variable "BASE" { default = "" }        # the base image by digest, in place of image:tag; for one image at a time
variable "WHEELS_BASE" { default = "" } # what wheels are compiled in, in place of image:tag
variable "PROXY" { default = "" }       # the proxy's image, in place of image:tag
variable "BASE_DIGEST" { default = "" } # what the tag stood for; recorded as a label
variable "IMAGE_PREFIX" { default = "quantyard/" } # "registry.example/team/" to push
variable "IMAGE_TAG" { default = "latest" }
variable "RECIPE" { default = "" }      # digest of everything an image is made from; recorded as a label
variable "EXTRA_CA" { default = "" }    # file: a CA to trust while building, never kept
variable "PIP_CONF" { default = "" }    # file: pip's settings while building, never kept
variable "WHEELS" { default = "" }      # folder: every wheel of the group `eval`; then nothing is downloaded or compiled
variable "COMPILED" { default = "" }    # folder: what target compiled-wheels wrote; then nothing is compiled
variable "ACCEL" { default = "" }       # what the server runs on besides the CPU: cuda, vulkan, rocm, intel, openvino
variable "GGUF" { default = "" }        # folder that holds model.gguf, for served-model
variable "MODEL_NAME" { default = "" }  # and what its labels say
variable "MODEL_TAG" { default = "" }
variable "SOURCE" { default = "" }
variable "REVISION" { default = "" }
variable "QUANT" { default = "" }
variable "SHA256" { default = "" }
variable "LICENSE" { default = "" }
variable "PLATFORMS" { default = "linux/amd64,linux/arm64" } # of the release targets only
variable "HTTP_PROXY" { default = "" }
variable "HTTPS_PROXY" { default = "" }
variable "NO_PROXY" { default = "" }
variable "http_proxy" { default = "" }
variable "https_proxy" { default = "" }
variable "no_proxy" { default = "" }

# parseint only ever fails here: HCL has no way to raise an error, and it quotes its argument in its own.
function "required" {
  params = [name, value]
  result = value != "" ? value : parseint("${name} is empty. Type first: set -a; . ./versions.env; set +a", 10)
}

# null, unlike "", leaves an argument to the defaults of the Docker client.
function "or_null" {
  params = [first, second]
  result = first != "" ? first : (second != "" ? second : null)
}

function "base" {
  params = [image_name, image, tag_name, tag]
  result = BASE != "" ? BASE : "${required(image_name, image)}:${required(tag_name, tag)}"
}

# Who builds one image on BASE need not say where wheels are compiled, unless it is the eval image.
function "wheels_base" {
  params = []
  result = WHEELS_BASE != "" || BASE != "" ? WHEELS_BASE : "${required("WHEELS_BASE_IMAGE", WHEELS_BASE_IMAGE)}:${required("WHEELS_BASE_TAG", WHEELS_BASE_TAG)}"
}

# Who builds one image on BASE need not name a proxy, unless it is the one image that has it.
function "proxy" {
  params = []
  result = PROXY != "" || BASE != "" ? PROXY : "${required("PROXY_IMAGE", PROXY_IMAGE)}:${required("PROXY_TAG", PROXY_TAG)}"
}

group "default" { targets = ["builder", "eval", "server", "contract"] }
group "release" { targets = ["builder-release", "eval-release", "server-release", "contract-release"] }

# ---- what all images share -------------------------------------------------------------------------
# No platforms: a local build is for this machine, the only kind that can be loaded and not pushed.
target "_common" {
  context = "."
  secret = concat(
    EXTRA_CA != "" ? ["id=extra_ca,src=${EXTRA_CA}"] : [],
    PIP_CONF != "" ? ["id=pip_conf,src=${PIP_CONF}"] : [],
  )
  # Proxies are arguments that BuildKit knows and keeps out of the image's history.
  args = {
    BASE_DIGEST = BASE_DIGEST
    IMAGE_TAG   = IMAGE_TAG
    RECIPE      = RECIPE
    HTTP_PROXY  = or_null(HTTP_PROXY, http_proxy)
    HTTPS_PROXY = or_null(HTTPS_PROXY, https_proxy)
    NO_PROXY    = or_null(NO_PROXY, no_proxy)
  }
  # A loaded image cannot carry attestations, and provenance would give every build another digest.
  attest = ["type=provenance,disabled=true"]
}

target "_release" {
  platforms = split(",", PLATFORMS)
  attest    = ["type=provenance,mode=max", "type=sbom"]
}

# ---- the images ------------------------------------------------------------------------------------
target "builder" {
  inherits   = ["_common"]
  dockerfile = "docker/builder.Dockerfile"
  target     = "builder"
  tags       = ["${IMAGE_PREFIX}builder:${IMAGE_TAG}"]
  args       = { BASE = base("LLAMA_CPP_IMAGE", LLAMA_CPP_IMAGE, "LLAMA_CPP_TAG", LLAMA_CPP_TAG) }
}

target "builder-release" { inherits = ["builder", "_release"] }

target "eval" {
  inherits   = ["_common"]
  dockerfile = "docker/eval.Dockerfile"
  target     = "eval"
  tags       = ["${IMAGE_PREFIX}eval:${IMAGE_TAG}"]
  args = {
    BASE        = base("EVAL_BASE_IMAGE", EVAL_BASE_IMAGE, "EVAL_BASE_TAG", EVAL_BASE_TAG)
    WHEELS_BASE = wheels_base()
  }
  contexts = WHEELS != "" ? { brought = WHEELS, compiled-wheels = WHEELS } : COMPILED != "" ? { compiled-wheels = COMPILED } : {}
}

target "eval-release" { inherits = ["eval", "_release"] }

target "eval-wheels" {
  inherits = ["eval"]
  target   = "wheels"
  tags     = []
  output   = ["type=local,dest=artifacts/wheels"]
}

# What no index has a wheel for; scripts/wheels.sh calls it for the virtual environments.
target "compiled-wheels" {
  inherits = ["eval"]
  target   = "compiled-wheels"
  tags     = []
  output   = ["type=local,dest=artifacts/compiled-wheels"]
}

target "server" {
  inherits   = ["_common"]
  dockerfile = "docker/server.Dockerfile"
  target     = "server"
  tags       = ["${IMAGE_PREFIX}server:${IMAGE_TAG}"]
  args = {
    BASE = base("LLAMA_CPP_IMAGE", LLAMA_CPP_IMAGE, "LLAMA_CPP_SERVER_TAG", ACCEL != "" ? "${LLAMA_CPP_SERVER_TAG}-${ACCEL}" : LLAMA_CPP_SERVER_TAG)
  }
}

target "server-release" { inherits = ["server", "_release"] }

target "contract" {
  inherits   = ["builder"]
  dockerfile = "docker/contract.Dockerfile"
  target     = "contract"
  tags       = ["${IMAGE_PREFIX}contract:${IMAGE_TAG}"]
  contexts   = { builder = "target:builder" }
  args = {
    PROXY = proxy()
  }
}

target "contract-release" {
  inherits = ["contract", "_release"]
  contexts = { builder = "target:builder-release" }
}

# One image with the GGUF inside; `make image` gives it everything.
target "served-model" {
  inherits = ["server"]
  target   = "served-model"
  tags     = [MODEL_TAG]
  contexts = { gguf = GGUF }
  args = {
    MODEL_NAME = MODEL_NAME
    SOURCE     = SOURCE
    REVISION   = REVISION
    QUANT      = QUANT
    SHA256     = SHA256
    LICENSE    = LICENSE
  }
}
