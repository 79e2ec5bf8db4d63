# Every target makes the environment it needs first; `make` alone lists them.

SHELL := /bin/bash
.DEFAULT_GOAL := help

BIN := .venv/bin
export PYTHON LOCK

# Nothing that runs from here calls home or looks a model up on the internet, and no test attaches to
# a cluster that happens to be running.
export RAY_USAGE_STATS_ENABLED := 0
export VLLM_NO_USAGE_STATS := 1
export DO_NOT_TRACK := 1
export MLFLOW_DISABLE_TELEMETRY := true
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false
unexport RAY_ADDRESS
# Compiled imports are kept: every process of a gang and of an engine would compile them anew.
unexport PYTHONDONTWRITEBYTECODE

TEST_ENV := RAY_AUTH_MODE=disabled HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
PYTEST := $(TEST_ENV) $(BIN)/python -m pytest
# One half of the fast tests; the other is whatever else there is.
HERE := tests/tracking tests/serving
PLAIN := not dist and not ray and not serve and not engines and not browser and not gpu

.PHONY: help setup demo test lint lint-aside test-fast test-fast-here test-fast-there test-dist test-ray test-browser test-serve test-engines test-gpu bench render lock sbom clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## make .venv from the locked requirements (PYTHON=... LOCK=cpu|gpu to choose)
	@cluster/requirements/setup.sh

demo: setup ## teach SmolLM2-135M a fact, check it, register it, serve it, ask it (EXIT=1: end by itself)
	@$(BIN)/rayline demo $(if $(filter 1,$(EXIT)),--exit)

test: setup ## everything that CI runs
	@# Fast tests take one core each, so their halves run side by side; ranks want both. Ray's
	@# tests wait half of their time, which is enough for the types.
	@$(MAKE) --no-print-directory --jobs=2 test-fast-here test-fast-there
	@$(MAKE) --no-print-directory --jobs=1 test-dist
	@$(MAKE) --no-print-directory --jobs=2 test-ray lint-aside
	@$(MAKE) --no-print-directory --jobs=1 test-browser
	@$(MAKE) --no-print-directory --jobs=1 test-serve
	@echo "test: all passed"

lint: setup ## style, types and the import table
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

lint-aside:
	@nice -n 19 $(MAKE) --no-print-directory lint

test-fast: setup ## the tests that start no other process
	$(PYTEST) -m "$(PLAIN)"

test-fast-here: setup
	$(PYTEST) -m "$(PLAIN)" $(HERE)

test-fast-there: setup
	$(PYTEST) -m "$(PLAIN)" $(HERE:%=--ignore=%)

test-dist: setup ## several ranks on gloo
	$(PYTEST) -m dist

test-ray: setup ## a real Ray cluster on this machine
	$(PYTEST) -m "ray and not engines"

test-browser: setup ## the console in a headless Chromium (installs Debian's where it can)
	@cluster/requirements/browser.sh
	$(PYTEST) -m browser

test-serve: setup ## Ray Serve with a real vLLM
	$(PYTEST) -m serve

test-engines: setup ## further engines, batches, longer rollouts, others' clients (15 min, online)
	$(PYTEST) -m engines

test-gpu: setup ## one NVIDIA GPU; not part of make test
	$(PYTEST) -m gpu

bench: setup ## run the benchmarks; each writes a dated result file beside itself
	@for script in examples/bench/*.py; do echo "bench: $$script"; $(BIN)/python "$$script" || exit 1; done

render: setup ## write the files of cluster/ anew from cluster/specs/
	$(BIN)/rayline cluster render cluster/specs/*.yaml --into cluster

lock: setup ## write the requirements lock anew (UPGRADE=1: newest versions that fit)
	@UPGRADE=$(UPGRADE) cluster/requirements/lock.sh

sbom: setup ## write what the locks install as CycloneDX bills of materials into dist/
	@mkdir -p dist
	@for lock in cpu gpu; do \
	  $(BIN)/python -W ignore -m cyclonedx_py requirements --output-reproducible --pyproject pyproject.toml \
	    --output-file dist/rayline-$$lock.cdx.json cluster/requirements/$$lock.txt && echo "sbom: dist/rayline-$$lock.cdx.json" || exit 1; \
	done

clean: ## remove the environment, caches and build outputs; runs and checkpoints stay
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist build
	find platform jobs tests examples -name __pycache__ -type d -prune -exec rm -rf {} +
