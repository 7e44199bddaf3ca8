# make demo: the whole chain on samples/nuclei, then a real Triton answers.   make test: lint, types, tests.
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
PYTHON ?= python3
VENV := .venv
# Images of containers often set it; each process would then compile torch and the others anew.
unexport PYTHONDONTWRITEBYTECODE
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: demo test test-image test-cluster pins
demo: $(VENV)/.installed
	dreamteacher repro
	python scripts/demo.py

test: $(VENV)/.installed-test
	ruff check --no-cache
	ruff format --check
	mypy
	OMP_NUM_THREADS=1 pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

# Builds the image of docker/ and runs it as a cluster does; as root, because it may start a Docker engine.
test-image: $(VENV)/.installed-test
	scripts/test_image.sh

# Serves models on the cluster of KUBECONFIG, in a namespace of its own; tests/cluster/rollouts.py says which images it needs.
test-cluster: $(VENV)/.installed-test
	pytest -n 0 -s -rs tests/cluster/rollouts.py

# The stamps make a second start skip pip. constraints.txt names every package, so pip has nothing to resolve (scripts/pins.py); `pip check`
# says whether that holds, of all but nvidia-pytriton: it brings a real tritonserver, and declares numpy<2 for a Python API that is not used.
INSTALL := python -m pip install --quiet --no-compile --no-deps --requirement /dev/stdin
CHECK := ! python -m pip check | grep --invert-match -e '^nvidia-pytriton ' -e '^No broken requirements'

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	python scripts/pins.py runtime | $(INSTALL)
	python scripts/pins.py cuda triton | $(INSTALL)
	python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(CHECK)
	python scripts/libpython.py
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	python scripts/pins.py pipelines test | $(INSTALL)
	$(CHECK)
	touch $@

# After a change of the dependencies: pip resolves them anew in a fresh environment, and what it chose becomes constraints.txt.
pins:
	rm -rf .venv-pins
	$(PYTHON) -m venv .venv-pins
	.venv-pins/bin/python -m pip install --quiet '.[test]' setuptools
	.venv-pins/bin/python scripts/pins.py --write
	rm -rf .venv-pins
