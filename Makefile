# Everything a developer or a newcomer does is a target here. `make` alone lists them.

SHELL := /bin/sh
.DEFAULT_GOAL := help
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/flyball
UV := $(or $(shell command -v uv 2>/dev/null),$(CACHE)/uv/bin/uv)
PYTHON ?= python3
# Only a Python that was asked for is forced on uv; else uv looks for one that is new enough.
ifneq ($(origin PYTHON),file)
export UV_PYTHON := $(PYTHON)
endif
export UV_PYTHON_DOWNLOADS := never
export UV

# Options of `make demo`.
TRACE ?= generated
SPEED ?= 1
NODES ?= 3
KEEP ?= 0
OUT ?= out/demo
# Options of `make replay`, `validate`, `scoreboard` and `bench`. DATA is the directory of measured data, if there is one.
DATA ?= $(or $(FLYBALL_DATA),$(patsubst %/traces,%,$(wildcard ../shared/data/traces)))
POLICY ?= docs/examples/chat.yaml
SEED ?= 1
# Options of `make test`: TESTS=tests/planning, ARGS='-k ledger', CLUSTER=current
TESTS ?= tests
ARGS ?=
CLUSTER ?= local

.PHONY: help demo test lint format crds replay validate compiled scoreboard robustness bench cluster cluster-down clean sync uv

help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: sync ## the whole of Flyball on this machine (TRACE=file SPEED=1 NODES=3 KEEP=1 OUT=out/demo)
	@.venv/bin/flyball-sim demo --trace "$(TRACE)" --speed $(SPEED) --nodes $(NODES) --out "$(OUT)" $(if $(filter 1,$(KEEP)),--keep)

test: lint ## lint, types, layers and every test, on a real control plane (TESTS= ARGS= CLUSTER=local|current)
	@.venv/bin/python -m pytest --cluster=$(CLUSTER) $(TESTS) $(ARGS)

lint: sync ## format check, lint, types, import layers
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports

format: sync ## rewrite the code to the house's format
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix .

crds: sync ## rewrite the CRDs, the chart's copies and the field reference from the models
	@.venv/bin/python -m flyball_api.crdgen

replay: sync ## what would a policy save on a trace? (POLICY=file TRACE=file|generator SEED=1 ARGS='--draws 20')
	@.venv/bin/flyball-sim replay --policy "$(POLICY)" --trace "$(TRACE)" --seed $(SEED) --out out/replay $(ARGS)

validate: sync ## the simulator beside published measurements (DATA=directory of the measured data)
	@.venv/bin/flyball-sim validate $(if $(DATA),--data "$(DATA)") $(ARGS)

compiled: sync ## the engine's hot modules as machine code, once per source (it runs without, at a third of the speed)
	@.venv/bin/python -c 'from flyball_sim.engine import compiling; raise SystemExit(compiling.main())' || true

scoreboard: compiled ## docs/scoreboard-results.md from SEED; hours, goes on after a stop (ARGS=--quick: minutes, no page)
	@.venv/bin/flyball-sim scoreboard --seed $(SEED) $(or $(ARGS),$(if $(DATA),--data "$(DATA)") --published \
		--goals --out out/scoreboard.jsonl --page docs/scoreboard-results.md)

robustness: compiled ## controllers when metrics, cards or the load misbehave; a few minutes (ARGS='--repeat 5 --controller Flyball')
	@.venv/bin/flyball-sim robustness $(ARGS)

bench: compiled ## speed of simulator and controllers; latency, CPU, memory, writes of a cluster (ARGS='--only decisions')
	@.venv/bin/flyball-sim bench --out out/bench $(if $(DATA),--data "$(DATA)") $(ARGS)

cluster: sync ## start the control plane and leave it running
	@.venv/bin/flyball-sim cluster up

cluster-down: sync ## stop it and remove its data
	@.venv/bin/flyball-sim cluster down

clean: ## remove what the targets made in this checkout (the cache outside it stays)
	rm -rf .venv out .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Not file targets: make would split the cache's path at its spaces.
sync:
	@test -x "$(UV)" || $(MAKE) --no-print-directory uv
	@"$(UV)" sync --all-packages --frozen --quiet

uv:
	@echo "flyball: no uv on PATH: installing it from PyPI into $(CACHE)/uv"
	@command -v "$(PYTHON)" >/dev/null || { echo "flyball: there is no $(PYTHON) on PATH: install Python 3.11 or newer, or name one, for example make PYTHON=python3.11"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "flyball: Python $$("$(PYTHON)" --version 2>&1 | cut -d' ' -f2) is too old: give one of at least 3.11, for example make PYTHON=python3.11"; exit 1; }
	@"$(PYTHON)" -m venv "$(CACHE)/uv" || { echo "flyball: $(PYTHON) cannot make a virtual environment: on Debian, apt-get install python3-venv"; rm -rf "$(CACHE)/uv"; exit 1; }
	@"$(CACHE)/uv/bin/pip" install --quiet --disable-pip-version-check 'uv>=0.9'
