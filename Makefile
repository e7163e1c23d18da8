# The user's verbs. Variables given to make reach the command as they are, through the environment:
#   make build MODEL=org/name QUANT=Q4_K_M
# What each variable means: make COMMAND-help, or docs/reference/settings.md.

PYTHON ?= python3
# The program refuses variables typed after make that the command does not take.
RUN = QUANTYARD_CALLED_BY_MAKE=1 .venv/bin/python -m quantyard
# … and this those that another target does not take.
CHECK = QUANTYARD_CALLED_BY_MAKE=1 $(PYTHON) scripts/check_variables.py
.DEFAULT_GOAL := help
COMMANDS = build eval matrix compare bump serve contract image lora publish release verify choose tune gate report plan rates quants models init config doctor gc demo images
OTHERS = help chat cluster-demo base-images test test-fast test-docker test-e2e test-all lint reference docs clean .ready .base-image
.PHONY: $(COMMANDS) $(OTHERS) $(COMMANDS:%=%-help)
export PYTHON

# A word that names nothing to make is refused before anything runs.
UNKNOWN := $(filter-out $(COMMANDS) $(OTHERS) $(COMMANDS:%=%-help),$(MAKECMDGOALS))
ifneq ($(UNKNOWN),)
$(error $(shell $(PYTHON) scripts/unknown_goal.py '$(subst ','\'',$(firstword $(UNKNOWN)))' $(COMMANDS) $(OTHERS)))
endif

help: ## this list
	@$(CHECK) $@
	@awk -F ':.*## ' -v width="$${COLUMNS:-$$(tput cols 2>/dev/null || echo 80)}" '/^[a-z0-9-]+:.*## / { \
	    line = sprintf("  make %-12s", $$1); n = split($$2, words, " "); \
	    for (i = 1; i <= n; i++) { \
	        if (length(line " " words[i]) > width) { print line; line = sprintf("%19s", "") } \
	        line = line " " words[i] } \
	    print line }' $(MAKEFILE_LIST)
	@echo
	@echo "  make COMMAND-help  every variable of a command"
	@echo
	@echo "  Start with:  make demo    or    make build MODEL=org/name QUANT=Q4_K_M"

build: .ready ## fetch, convert, quantize, verify: MODEL=org/name|folder|file.gguf QUANT=Q4_K_M[,…]
	@$(RUN) build

eval: .ready ## what quantization cost: MODEL=… QUANT=… [SUITE=smoke|quick|standard|full|behaviour|file.yaml] [BASELINE=BF16]
	@$(RUN) eval

matrix: .ready ## make, measure and compare many quants in one run: MODEL=… [QUANTS=Q2_K,Q4_K_M,…] [SUITE=…]
	@$(RUN) matrix

compare: .ready ## files of others beside ours: MODEL=… REPOS=them/name-GGUF,folder,ollama:name [FILES=Q4_K_M,*IQ4*|all] [SUITE=…]
	@$(RUN) compare

bump: .ready ## what a new llama.cpp would change, file by file: MODEL=… [LLAMA_CPP=tag|image|venv] [QUANT=…] [SUITE=…]
	@$(RUN) bump

serve: .ready ## serve on 127.0.0.1:8080: what is in artifacts/served, or from now on MODEL=… [QUANT=…]; ENGINE=local: no Docker
	@$(RUN) serve

contract: .ready ## serve each file on loopback and test its API: MODEL=… QUANT=…
	@$(RUN) contract

image: .ready ## one server image with the GGUF inside: MODEL=… QUANT=… TAG=registry/name:tag [PUSH=1]
	@$(RUN) image

lora: .ready ## a LoRA adapter as GGUF, to serve with LORA_FILE=…: ADAPTER=org/name|folder [BASE=org/name|folder]
	@$(RUN) lora

publish: .ready ## to the Hub and a registry: MODEL=… QUANT=… REPO=me/name-GGUF [OCI=registry/name] [GATE=gate.yaml] [DRY_RUN=1|YES=1]
	@$(RUN) publish

release: .ready ## build → eval → contract → gate → card → publish: MODEL=… QUANT=… REPO=me/name-GGUF
	@$(RUN) release

verify: .ready ## check what was published against its manifest: REPO=me/name-GGUF or FILE=path [REBUILD=1]
	@$(RUN) verify

choose: .ready ## name the best of the measured files: MODEL=… RAM=8GiB [MIN_TPS=20] [MAX_KLD=0.05] [CONTEXT_SIZE=8192]
	@$(RUN) choose

tune: .ready ## a mix of tensor types for a size or a divergence: MODEL=… TARGET_SIZE=4GiB|Q4_K_M or TARGET_KLD=0.05
	@$(RUN) tune

gate: .ready ## compare what was measured with the budgets: MODEL=… QUANT=… [GATE=gate.yaml]
	@$(RUN) gate

report: .ready ## write the model card and the report page: MODEL=… QUANT=…
	@$(RUN) report

chat: ## chat with the served model
	@$(CHECK) $@
	@scripts/setup-venv.sh client .venv-client && .venv-client/bin/python -m server.client.chat

plan: .ready ## show stages, disk, memory and time of a build (SUITE=…: of an eval, QUANTS=…: of a matrix); runs nothing
	@$(RUN) plan

rates: .ready ## time the stages on this machine once (minutes), so that plans can forecast their time
	@$(RUN) rates

quants: .ready ## list every quantization type, and when to choose it: [FIND=text]
	@$(RUN) quants

models: .ready ## list the models that have a short name for MODEL: [FIND=text], then with notes
	@$(RUN) models

init: .ready ## write quantyard.toml, the settings of one model, with what can be found: MODEL=… [any other setting]
	@$(RUN) init

config: .ready ## show each setting's value, and its origin: a variable, quantyard.toml, or the default
	@$(RUN) config

doctor: .ready ## check this machine, with a remedy for each finding
	@$(RUN) doctor

gc: .ready ## remove what nobody needs: second results, and from STORE=/shared/yard|s3://… killed attempts [KEEP_DAYS=7] [DRY_RUN=1]
	@$(RUN) gc

demo: .ready .base-image ## build and measure a real 135M model; needs no account
	@$(RUN) demo

cluster-demo: .ready ## the demo on a Slurm of two nodes, made of network namespaces of this machine; needs root
	@$(CHECK) $@
	@scripts/cluster-demo.sh

images: .ready ## build the images now; with ENGINE=local set up .venv-local
	@$(RUN) images

base-images: ## make stand-ins for the base images if their registry cannot be reached
	@$(CHECK) $@
	@scripts/base-images.sh

$(COMMANDS:%=%-help): %-help: .ready
	@$(RUN) $* --help

test: ## the tests of some minutes: units, the page, a real build; TIER=change for all that CI runs
	@$(CHECK) $@
	@scripts/test.sh $(or $(TIER),quick)

test-fast: ## the unit tests that take milliseconds: no network, no containers
	@$(CHECK) $@
	@scripts/test.sh fast

test-docker: ## the tests of containers, servers and the page
	@$(CHECK) $@
	@scripts/test.sh docker

test-e2e: ## the tests of a real model from end to end
	@$(CHECK) $@
	@scripts/test.sh e2e

test-all: ## every test: all of what CI samples, and both engines everywhere
	@$(CHECK) $@
	@scripts/test.sh all

lint: ## style, types, floors, and documents: the reference is current, no link is dead
	@$(CHECK) $@
	@scripts/setup-venv.sh test && scripts/setup-venv.sh lint && scripts/setup-venv.sh docs .venv-docs
	@.venv/bin/ruff check . && .venv/bin/mypy && .venv/bin/lint-imports
	@.venv/bin/python scripts/make_reference.py --check && .venv-docs/bin/zensical build --strict

reference: ## write docs/reference/ anew, from the code
	@$(CHECK) $@
	@scripts/setup-venv.sh test
	@.venv/bin/python scripts/make_reference.py

docs: ## the documents as a site: site/index.html
	@$(CHECK) $@
	@scripts/setup-venv.sh docs .venv-docs
	@.venv-docs/bin/zensical build --strict --clean

clean: ## remove the virtual environments; artifacts stay
	@$(CHECK) $@
	@rm -rf .venv .venv-client .venv-clients .venv-oldclients .venv-docs .venv-local .venv-bench .venv-openvino

.ready:
	@scripts/setup-venv.sh quantyard

# The first two minutes must not end at a registry that cannot be reached. Builds leave that to `make base-images`.
.base-image:
	@[ "$(ENGINE)" = local ] || ! docker version >/dev/null 2>&1 || scripts/base-images.sh --if-unreachable
