# make demo: the answer of the README, from nothing but python3 >= 3.11, make and pip.
# make venv: all that the tests need.  make test: the tests.  make check: linters and types.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo venv test test-all bench check validate-cpu validate-h200 docs clean

demo: $(VENV)/.core
	$(BIN)/moesim demo --out out/demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-all: $(VENV)/.dev
	$(BIN)/python -m pytest -m ""

bench: $(VENV)/.dev
	$(BIN)/python -m pytest benchmarks --benchmark-only --benchmark-columns=min,median,max,rounds

# About five minutes on two cores that do nothing else.
validate-cpu: $(VENV)/.dev
	$(BIN)/moesim validate --device cpu --budget 3.5min --out out/validate-cpu

# docs/how-accurate.md again, from the committed measurements of an H200; needs no GPU.
validate-h200: $(VENV)/.dev
	$(BIN)/python studies/08_gpu_evidence/study.py

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy moesim

venv: $(VENV)/.dev

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("moesim needs Python >= 3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[torch,transformers,fit,dev]'
	touch $@

clean:
	rm -rf $(VENV) out build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
