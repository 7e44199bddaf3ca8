# make demo: run the chain on samples/bccd and serve the model with Triton.   make test: lint, types, tests.
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
PYTHON ?= python3
VENV := .venv
# Often set in container images; without bytecode each process would compile torch and other packages again.
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

# Builds the image in docker/ and runs it as on a cluster; needs root if it has to start a Docker engine.
test-image: $(VENV)/.installed-test
	scripts/test_image.sh

# Serves models on the cluster in KUBECONFIG, in a temporary namespace; for the required images see tests/cluster/rollouts.py.
test-cluster: $(VENV)/.installed-test
	pytest -n 0 -s -rs tests/cluster/rollouts.py

# Stamp files skip pip on the next start. constraints.txt pins every package, so pip resolves nothing (scripts/pins.py); `pip check` verifies
# that, except for nvidia-pytriton, which contains tritonserver and requires numpy<2 only for a Python API that is not used.
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

# After a change of dependencies: resolve them in a fresh environment, and write the result to constraints.txt.
pins:
	rm -rf .venv-pins
	$(PYTHON) -m venv .venv-pins
	.venv-pins/bin/python -m pip install --quiet '.[test]' setuptools
	.venv-pins/bin/python scripts/pins.py --write
	rm -rf .venv-pins
