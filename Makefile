# make demo    the main job on handwritten digits, nothing to set up
# make test    every test but those that take minutes, which make test-all adds
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

UNITS := not entry and not faults and not chaos
JOBS := (entry or faults)
# a test that hangs ends the run and says where
HANG := --override-ini faulthandler_timeout=1200 --override-ini faulthandler_exit_on_timeout=true

.PHONY: demo test test-all s3rver lint format lock clean

demo: $(VENV)/.installed
	$(BIN)/tlray demo --output tlray-demo

test: $(VENV)/.installed-test
	$(BIN)/pytest -m "$(UNITS)" --numprocesses 2 --dist loadfile
	$(BIN)/pytest -m "$(JOBS) and not chaos" --durations=25 $(HANG)

test-all: $(VENV)/.installed-test
	$(BIN)/pytest

# a second S3 server to test against: pip cannot install it, and tests go without where npm is missing
s3rver: .s3rver/node_modules/.bin/s3rver

.s3rver/node_modules/.bin/s3rver:
	npm install --prefix .s3rver --no-package-lock --no-audit --no-fund --loglevel error s3rver@3.7.1

lint: $(VENV)/.installed-test
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy --strict tlray jobs
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# needs uv; the pins carry hashes and no index address, and serve make, CI and the image alike
LOCK := uv pip compile pyproject.toml --universal --python-version 3.11 --fork-strategy fewest \
	--generate-hashes --no-header --quiet
lock:
	$(LOCK) --upgrade -o cluster/requirements.txt
	$(LOCK) --extra cluster -c cluster/requirements.txt -o cluster/requirements-cluster.txt
	$(LOCK) --extra cluster --extra test -c cluster/requirements-cluster.txt -o cluster/requirements-test.txt
	$(LOCK) --extra gpu -c cluster/requirements-cluster.txt -o cluster/requirements-gpu.txt

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# Python compiles what is imported; compiling all of TensorFlow takes as long as installing it
$(VENV)/.installed: cluster/requirements.txt pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-compile --require-hashes -r cluster/requirements.txt
	$(BIN)/python -m pip install --quiet --no-compile --no-deps --editable .
	touch $@

# these requirements hold the others
$(VENV)/.installed-test: cluster/requirements-test.txt pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-compile --require-hashes -r cluster/requirements-test.txt
	$(BIN)/python -m pip install --quiet --no-compile --no-deps --editable .
	touch $(VENV)/.installed $@

clean:
	rm -rf $(VENV) .s3rver build dist .mypy_cache .pytest_cache .ruff_cache
