# Two commands on a fresh machine with Python, make and a C compiler: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test test-slow lint lock clean

setup: $(STAMP)

# The lock file names exact versions; pip takes them from whichever package index this machine is set up for.
$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: setup
	$(BIN)/saf-jax demo --workdir runs/demo

test: setup
	$(BIN)/python -m ruff check .
	$(BIN)/python -m pytest -m "not slow and not ci" -n 2 --dist loadfile --no-loadscope-reorder --durations 15

test-slow: setup
	$(BIN)/python -m pytest -m "slow or ci"

lint: setup
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

# Renews the lock after a change of the dependencies in pyproject.toml.
lock:
	$(BIN)/python -m uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --no-annotate --no-header \
		--extra dev --output-file requirements.lock pyproject.toml

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
