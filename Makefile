# Every target sets up what it needs: a virtual environment in .venv, with the extras it uses. Another version of Python
# (make test PYTHON=python3.13) gets an environment of its own beside it, in .venv-3.13.
PYTHON ?= python3
VENV := .venv
ifneq ($(origin PYTHON),file)
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
PRESENT := $(shell sed -nE 's/^version(_info)? = ([0-9]+\.[0-9]+).*/\2/p' .venv/pyvenv.cfg 2>/dev/null)
$(if $(VERSION),,$(error Expected PYTHON to be an interpreter; got $(PYTHON). Name one in PATH, or give its path))
ifneq ($(PRESENT),$(if $(PRESENT),$(VERSION)))
VENV := .venv-$(VERSION)
endif
endif
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps

.PHONY: help setup demo test test-slow test-lowest calibration lint types docs bench release clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 14

setup: $(STAMPS)/test  ## an environment with all that the tests need

demo: $(STAMPS)/examples  ## learn a swiss roll and digits, use them as priors, draw the posteriors (three minutes on two cores)
	$(BIN)/python examples/demo.py --output demo_output

test: $(STAMPS)/test lint types  ## everything that must pass
	$(BIN)/python -m pytest

test-slow: $(STAMPS)/test  ## the tests that take long
	XLA_FLAGS="$$XLA_FLAGS" $(BIN)/python -m pytest --run-slow -m slow

test-lowest:  ## the tests with the oldest supported versions, in an environment of their own
	$(PYTHON) -m venv $(VENV)/lowest
	$(VENV)/lowest/bin/python -m pip install --quiet --editable '.[test]' --constraint lower_bounds.txt
	$(VENV)/lowest/bin/python -m pytest tests/exact tests/contract -W ignore::DeprecationWarning

calibration: $(STAMPS)/test  ## simulation-based calibration of a joint posterior, and that a wrong one is noticed
	XLA_FLAGS="$$XLA_FLAGS" $(BIN)/python -m pytest --run-slow tests/test_calibration.py

lint: $(STAMPS)/test  ## style, formatting, direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(STAMPS)/test  ## static types
	$(BIN)/mypy

docs: $(STAMPS)/docs  ## the documentation, every cell run, in docs/_build/html
	$(BIN)/sphinx-build -j 2 -W --keep-going -w docs/_build/warnings.txt -b html docs docs/_build/html \
		|| { cat docs/_build/warnings.txt; exit 1; }

bench: $(STAMPS)/test  ## all benchmarks, into benchmarks/results (more than an hour)
	$(BIN)/python benchmarks/paper_table.py --rows swiss_roll heartbeat
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/posterior_mixture.py
	$(BIN)/python benchmarks/posterior_joint.py
	$(BIN)/python benchmarks/posterior_checks.py
	$(BIN)/python benchmarks/posterior_scale.py
	$(BIN)/python benchmarks/posterior_speed.py
	$(BIN)/python benchmarks/evaluation.py
	$(BIN)/python benchmarks/image_posteriors.py
	$(BIN)/python benchmarks/texture_inpainting.py

release: $(STAMPS)/test  ## sdist and wheel in dist/, tried in a clean environment
	$(BIN)/python tools/try_release.py

clean:  ## remove the environments and what was built
	rm -rf .venv .venv-* build dist *.egg-info docs/_build demo_output

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("Expected Python 3.11 or newer; got %d.%d. Run make PYTHON=python3.11." % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(STAMPS)/%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@mkdir -p $(STAMPS)
	@touch $@
