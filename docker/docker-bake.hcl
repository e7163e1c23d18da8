# How the images are built. Pins come from versions.env through the environment; none is repeated here.
#
#   set -a; . ./versions.env; set +a
#   docker buildx bake -f docker/docker-bake.hcl --load            # for this machine
#   docker buildx bake -f docker/docker-bake.hcl --push release    # every platform, with SBOM and provenance
#
# To add an image: add docker/<name>.Dockerfile (last stage: <name>), a target <name>, its
# `<name>-release`, and both to the groups.

# ---- pins, from versions.env -----------------------------------------------------------------------
variable "LLAMA_CPP_IMAGE" { default = "" }
variable "LLAMA_CPP_TAG" { default = "" }

# ---- choices of the caller -------------------------------------------------------------------------
variable "BASE" { default = "" }        # the base image by digest, in place of image:tag
variable "BASE_DIGEST" { default = "" } # what the tag stood for; recorded as a label
variable "IMAGE_PREFIX" { default = "quantyard/" } # "registry.example/team/" to push
variable "IMAGE_TAG" { default = "latest" }
variable "RECIPE" { default = "" }      # digest of everything an image is made from; recorded as a label
variable "EXTRA_CA" { default = "" }    # file: a CA to trust while building, never kept
variable "PIP_CONF" { default = "" }    # file: pip's settings while building, never kept
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

function "llama_cpp_base" {
  params = []
  result = BASE != "" ? BASE : "${required("LLAMA_CPP_IMAGE", LLAMA_CPP_IMAGE)}:${required("LLAMA_CPP_TAG", LLAMA_CPP_TAG)}"
}

group "default" { targets = ["builder"] }
group "release" { targets = ["builder-release"] }

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
  args       = { BASE = llama_cpp_base() }
}

target "builder-release" { inherits = ["builder", "_release"] }
