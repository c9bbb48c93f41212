# Every target does its own set-up on a machine that has Python 3.11+ and make. Second runs skip it.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup demo test test-all test-export test-devices lint bench clean

help:
	@echo "make demo      the whole job on the shipped network; prints the report's path"
	@echo "make test      lint, types, room rules and every quick test"
	@echo "make test-all  the slow tests too"
	@echo "make test-export  every format and precision over the zoo, and the converters in environments of their own (about 30 minutes,"
	@echo "               4.5 GB of environments in the cache folder)"
	@echo "make test-devices  devices to the end: an emulated arm64 board over ssh, Android's adbd (root on Debian; says what it leaves out)"
	@echo "make bench     the measurements behind the README's tables (about 40 minutes)"

setup:
	@PYTHON="$(PYTHON)" bash .ci/setup.sh dataset-fashion-mnist

demo: setup
	$(BIN)/trimtab demo

lint:
	@PYTHON="$(PYTHON)" bash .ci/setup.sh
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	@PYTHON="$(PYTHON)" bash .ci/setup.sh dataset-fashion-mnist chromium lite0-weights emulated-arm npm sshd
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 -m "not slow"

test-all: lint
	@PYTHON="$(PYTHON)" bash .ci/setup.sh dataset-fashion-mnist chromium lite0-weights emulated-arm npm sshd
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4

test-export: lint
	@PYTHON="$(PYTHON)" bash .ci/setup.sh dataset-fashion-mnist lite0-weights
	$(BIN)/trimtab export --setup litert-torch
	$(BIN)/trimtab export --setup tensorflow
	$(BIN)/trimtab export --setup tflite-support
	$(BIN)/python -m pytest -q -n auto --maxprocesses 2 tests/export tests/cli/test_export_options.py

test-devices: lint
	@PYTHON="$(PYTHON)" bash .ci/setup.sh chromium emulated-arm npm sshd qemu-user-static binfmt-support debootstrap
	-$(BIN)/trimtab devices setup arm64
	-$(BIN)/trimtab devices setup browser
	$(BIN)/python -m pytest -q -n auto --maxprocesses 2 tests/devices tests/cli/test_devices_cli.py

bench: setup
	$(BIN)/python benchmarks/spine.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/timing.py
	$(BIN)/python benchmarks/tables.py

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
