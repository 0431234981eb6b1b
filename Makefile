# `make` or `make help` lists what there is. Two virtual environments: a small one that can only serve, and the full one.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
SERVE_VENV ?= .venv-serve
HOST ?= 127.0.0.1
PORT ?= 8000
DATA ?= ../shared/data/faces
PEERS ?= ../shared/peers
OUT ?= runs/d0
ARGS ?=
LOCAL ?=
export HOST PORT
# ONNX Runtime (1.29 and newer) reports its use to its makers unless told not to.
export ORT_DISABLE_TELEMETRY := 1

PY := $(VENV)/bin/python
# Compose v2, else docker-compose 1.29.
COMPOSE ?= $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose)
TENSORRT_INDEX_URL ?= $(shell sed -n 's/^ARG TENSORRT_INDEX_URL=//p' Dockerfile)
CODE := service training export benchmarks

# make_venv FOLDER: a fresh environment, or a sentence that says what is missing.
define make_venv
	@test -n "$(PYTHON)" || { echo "No python3 was found. Install Python 3.11 or newer, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is $$("$(PYTHON)" -V); Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(1)/bin/python && $(1)/bin/python -m pip --version >/dev/null 2>&1 || { \
	  echo "Making the environment $(1)"; rm -rf $(1); \
	  "$(PYTHON)" -m venv $(1) >/dev/null 2>&1 || { rm -rf $(1); "$(PYTHON)" -m virtualenv -q $(1) 2>/dev/null; } || { \
	  rm -rf $(1); echo "$(PYTHON) can make no virtual environment. On Debian and Ubuntu: apt install python3-venv (elsewhere: $(PYTHON) -m pip install virtualenv), then try again." >&2; exit 1; }; }
endef

.PHONY: help
help: ## This list
	@echo "asfd: a face-detection service that keeps its latency promise"; echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-20s %s\n", $$1, $$2 }' Makefile
	@echo; echo "  Set on the command line: HOST=$(HOST) PORT=$(PORT) DATA=$(DATA) PEERS=$(PEERS) OUT=$(OUT) ARGS='more options'"

.PHONY: serve
serve: $(SERVE_VENV)/.ready ## Serve on http://HOST:PORT (sets itself up; needs no GPU and no torch)
	@exec $(SERVE_VENV)/bin/python -m service serve $(ARGS)

.PHONY: setup
setup: $(VENV)/.ready ## Full environment: service, training, export, tests (downloads torch, some GB)

$(SERVE_VENV)/.ready: pyproject.toml constraints.txt
	$(call make_venv,$(SERVE_VENV))
	@echo "Installing the service (about 150 MB to download, once)"
	@$(SERVE_VENV)/bin/python -m pip install -q --disable-pip-version-check --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.ready: pyproject.toml constraints.txt
	$(call make_venv,$(VENV))
	@echo "Installing everything, torch included (some GB to download, once)"
	@$(PY) -m pip install -q --disable-pip-version-check --constraint constraints.txt --editable ".[training,export,bench,dev]"
	@touch $@

# facenet-pytorch (MTCNN) asks for a torch of 2024, yet runs with today's: so without its dependencies.
$(VENV)/.ready-bench: $(VENV)/.ready
	@$(PY) -m pip install -q --disable-pip-version-check --no-deps "facenet-pytorch==2.6.0"
	@touch $@

# TensorRT's libraries (some GB) come from NVIDIA's own index.
$(SERVE_VENV)/.ready-tensorrt: $(SERVE_VENV)/.ready
	@echo "Installing TensorRT from $(TENSORRT_INDEX_URL) (some GB to download, once)"
	@$(SERVE_VENV)/bin/python -m pip install -q --disable-pip-version-check --extra-index-url "$(TENSORRT_INDEX_URL)" \
	  --constraint constraints.txt --editable ".[tensorrt]"
	@touch $@

define need_gpu
	@command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep GPU >/dev/null || { \
	  echo "An engine is built on the GPU that will run it, and nvidia-smi shows none here. Install NVIDIA's driver (580 or newer)." >&2; exit 1; }
endef

.PHONY: engines
ifeq ($(LOCAL),)
engines: ## TensorRT engines for this machine's GPU, in Docker, for the compose service asfd-gpu (LOCAL=1: for make serve)
	$(need_gpu)
	@docker version >/dev/null 2>&1 || { \
	  echo "No Docker engine answers. Start it, or build without it: make engines LOCAL=1" >&2; exit 1; }
	@$(COMPOSE) --profile engines build asfd-engines
	@$(COMPOSE) --profile engines run --rm asfd-engines build-engines $(ARGS) || { \
	  echo "If Docker could not select the device driver nvidia, install the NVIDIA Container Toolkit, then: nvidia-ctk runtime configure --runtime=docker, and restart Docker." >&2; exit 1; }
else
engines:
	$(need_gpu)
	@$(MAKE) --no-print-directory $(SERVE_VENV)/.ready-tensorrt
	@$(SERVE_VENV)/bin/python -m service build-engines $(ARGS)
endif

.PHONY: test
test: $(VENV)/.ready ## All tests but those that need a Docker engine
	@$(PY) -m pytest -m "not docker" $(ARGS)

.PHONY: test-lower-bounds
test-lower-bounds: ## The service's tests on the oldest versions that pyproject.toml allows
	@rm -rf .venv-oldest
	$(call make_venv,.venv-oldest)
	@.venv-oldest/bin/python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
	  print(*(d.replace('>=', '==') for d in p['dependencies']), sep='\n')" > .venv-oldest/oldest.txt
	@.venv-oldest/bin/python -m pip install -q --disable-pip-version-check --constraint .venv-oldest/oldest.txt \
	  --editable . httpx httpx2 hypothesis pytest pytest-timeout pyyaml scikit-image selenium onnx
	@.venv-oldest/bin/python -m pytest tests/service tests/test_boundaries.py -m "not docker" $(ARGS)

.PHONY: lint
lint: $(VENV)/.ready ## ruff (rules and format) and mypy --strict
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy --strict $(CODE)

.PHONY: format
format: $(VENV)/.ready ## Format the code and fix what ruff can fix
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

.PHONY: smoke
smoke: $(VENV)/.ready ## Build the image, bring the compose file up, post a photo, check the scrape and the drain
	@$(PY) -m pytest -m docker tests/deploy $(ARGS)

.PHONY: bench
bench: bench-latency bench-engines bench-load bench-accuracy bench-training ## All benchmarks

.PHONY: bench-accuracy
bench-accuracy: $(VENV)/.ready-bench ## AP and CPU time of the shipped models beside other detectors, on DATA and PEERS
	@$(PY) -m benchmarks.accuracy --data "$(DATA)" --peers "$(PEERS)" $(ARGS)

.PHONY: bench-latency
bench-latency: $(VENV)/.ready ## Engine times, HTTP round trips, start-up, memory and disk, on this machine
	@$(PY) -m benchmarks.latency $(ARGS)

.PHONY: bench-engines
bench-engines: $(VENV)/.ready ## Every engine that runs here: parity, latency by batch, memory, and the hardware's floor
	@$(PY) -m benchmarks.engines $(if $(wildcard $(DATA)),--data "$(DATA)") $(ARGS)

.PHONY: bench-load
bench-load: $(VENV)/.ready ## Traces of photos against the running service, policy by policy (an hour or two; resumes)
	@$(PY) -m benchmarks.load $(if $(wildcard $(DATA)),--data "$(DATA)") $(ARGS)

.PHONY: bench-training
bench-training: $(VENV)/.ready ## How fast D0 trains on DATA on this machine, and where a step's time goes
	@$(PY) -m benchmarks.training --data "$(DATA)" $(ARGS)

# On a copy of the models, since plans belong to one GPU.
.PHONY: gpu-report
gpu-report: $(VENV)/.ready ## All that waits for an NVIDIA GPU: engines, figures, tests (docs/engines.md says what to install)
	$(need_gpu)
	@rm -rf build/gpu/models && mkdir -p build/gpu && cp -r models build/gpu/models
	@$(PY) -m export tensorrt d0 --repository build/gpu/models --sizes 480x640 --max-batch 16 || \
	  echo "TensorRT is left out of the report, for the reason above" >&2
	@$(PY) -m benchmarks.engines $(if $(wildcard $(DATA)),--data "$(DATA)") --repository build/gpu/models \
	  --trace build/gpu/trace $(ARGS)
	@$(if $(wildcard $(DATA)),$(PY) -m export nms d0 --data "$(DATA)" --photos 9 --long-sides 640 --out benchmarks/results/nms-gpu.json,\
	  echo "What an iteration of NMS takes is left out: there are no photos in $(DATA)" >&2)
	@$(PY) -m pytest -m gpu

.PHONY: train
train: $(VENV)/.ready ## Train D0 on DATA into OUT; run it again to resume
	@exec $(PY) -m training train --data "$(DATA)" --out "$(OUT)" $(ARGS)

.PHONY: clean
clean: ## Remove caches and build products; environments, runs and models stay
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	@find . -path './.venv*' -prune -o -type d -name __pycache__ -print0 | xargs -0 -r rm -rf

.PHONY: clean-all
clean-all: clean ## And the environments
	@rm -rf $(VENV) $(SERVE_VENV) .venv-oldest
