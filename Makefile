# `make help` lists the targets. Needs Python >= 3.11; the rest is installed into .venv.

PYTHON ?= python3
VENV ?= .venv
# Extras to install; `make test EXTRAS=dev` skips the tests of the others.
EXTRAS ?= dev,onnx,torch,eval,heif,peers
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed-$(EXTRAS)
WORKERS ?= 2
# One process runs all tests of a file, which share compiled programs.
PARALLEL := -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# Run fewer tests: `make test TESTS=tests/test_ops_conv.py`.
TESTS ?=

.PHONY: help run train test test-slow test-full test-all lint wheel clean

help:
	@echo "make run       build the networks, print their summary, save a forward pass"
	@echo "make train     train a small network on drawn scenes, in minutes, without data"
	@echo "make test      the tests, in a few minutes"
	@echo "make test-slow killed and resumed runs, several processes; with the extra tpu"
	@echo "               (EXTRAS=dev,onnx,torch,eval,heif,peers,tpu) also TPU programs"
	@echo "make test-full more cases, networks of full size"
	@echo "make test-all  all tests"
	@echo "make lint      ruff, as in CI"
	@echo "make wheel     build dist/*.whl"
	@echo "make clean     remove everything that make has installed and built"
	@echo "Options: PYTHON=python3.12 VENV=.venv312 EXTRAS=dev TESTS=tests/test_config.py"

run: $(STAMP)
	$(RUN) -m migan_jax.summary --picture=out/forward.png

train: $(STAMP)
	$(RUN) -m migan_jax.train --config=scenes64 --workdir=runs/scenes

test: $(STAMP) lint
	$(RUN) -m pytest $(PARALLEL) -m "not slow and not aot and not full" $(TESTS)

test-slow: $(STAMP)
	$(RUN) -m pytest $(PARALLEL) -m "(slow or aot) and not full" $(TESTS)

test-full: $(STAMP)
	$(RUN) -m pytest -m full

test-all: test test-slow test-full

lint: $(STAMP)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

wheel: $(STAMP)
	$(RUN) -m build --wheel

clean:
	rm -rf .venv* build dist out *.egg-info

$(STAMP): setup.cfg requirements.txt pyproject.toml tests/constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and \
		'migan_jax needs Python 3.11 or newer: make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint tests/constraints.txt \
		--editable ".[$(EXTRAS)]"
	@touch $@
