# make demo: the whole chain on samples/nuclei, then a real Triton answers.   make test: lint, types, tests.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: demo test test-image
demo: $(VENV)/.installed
	dvc repro
	python scripts/demo.py

test: $(VENV)/.installed-test
	ruff check --no-cache
	ruff format --check
	mypy
	OMP_NUM_THREADS=1 pytest --numprocesses 2 --dist loadfile

# Builds the image of docker/ and runs it as a cluster does; as root, because it may start a Docker engine.
test-image: $(VENV)/.installed-test
	scripts/test_image.sh

# The stamps make a second start skip pip. nvidia-pytriton brings a real tritonserver; its numpy<2 is of its Python API, which is not used.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	python -m pip install --quiet --constraint constraints.txt --editable .
	python -m pip install --quiet --constraint constraints.txt --no-deps nvidia-pytriton
	python scripts/libpython.py
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@
