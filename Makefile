# Every target sets up what it needs: a virtual environment in .venv, from pinned versions.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready
WORKERS ?= 2

.PHONY: demo serve test test-nightly test-clients check format bench bench-scheduling clean

demo: $(STAMP)
	@$(BIN)/python examples/demo.py

serve: $(STAMP)
	@$(BIN)/python -m gateway --local

test: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-nightly: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) -m nightly

# Real clients, installed into .clients (needs the network and npm); not part of CI. Writes docs/results/clients.md.
test-clients: $(STAMP)
	$(BIN)/python -m tests.client_matrix

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)
	$(BIN)/python -m benchmarks

# Every goal of the scenario suite; writes docs/results. The last line needs a quiet machine: it runs in real time.
bench-scheduling: $(STAMP)
	$(BIN)/python -m benchmarks.scheduling --output docs/results
	$(BIN)/python -m benchmarks.scheduling.live --output docs/results

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; name it with make PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Setting up .venv (the first time takes a few minutes) ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info
