# Each target sets up .venv by itself; a stamp per extra keeps the second call instant.
PYTHON ?= python3
BIN := .venv/bin
.DEFAULT_GOAL := help

.PHONY: help setup dev quickstart test tpu exact bench bench-smoke lint format

help:  ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort

.venv/base: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; set PYTHON=python3.12, say")'
	@echo "setting up .venv: 1.3 GB, a minute or more"
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

.venv/dev: .venv/base
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,torch]'
	@touch $@

.venv/cuda12 .venv/cuda13 .venv/tpu: .venv/base
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(@F)]'
	@touch $@

.venv/libtpu: .venv/dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $@ \
	  "$$($(BIN)/python -c 'from importlib import metadata as m; print(next(x for x in m.requires("jax") if "libtpu" in x).split(";")[0])')"
	@touch $@

setup: .venv/base  ## install the package into .venv

dev: .venv/dev  ## install it with what tests and lint need

quickstart: .venv/base  ## the whole method on the embedded task: SFT, ILR, naive, DPO, and a report
	$(BIN)/ilr demo

test: .venv/dev  ## all tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart=0

tpu: .venv/libtpu  ## tests that compile for TPUs, none of which need be there; apart from .venv, which would look for one at every start
	PYTHONPATH=.venv/libtpu JAX_PLATFORMS=cpu $(BIN)/python -m pytest -m tpu tests/test_plan.py tests/models/test_splash.py

exact: .venv/dev  ## parity, cache and sampling on programs that are compiled as users get them
	XLA_FLAGS=--xla_backend_optimization_level=3 $(BIN)/python -m pytest -n 2 --dist loadfile tests/models tests/sample

bench: .venv/dev  ## speed and memory against PyTorch on this machine, an hour and a half on two idle cores; docs/performance.md is made of it
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks --write

bench-smoke: .venv/dev  ## the same in small, minutes: fails where a ratio misses its floor twice
	$(BIN)/python -m benchmarks --size=smoke --check --busy

lint: .venv/dev  ## format check, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: .venv/dev  ## put the code into its format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
