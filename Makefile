# Every target sets up what it needs: a virtual environment in .venv, from pinned versions.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready
RUNS := .venv/.runs
VISION := .torchvision/.ready
QUANTIZE := .quantize/.ready
WORKERS ?= 2
# At a terminal pip shows what it downloads.
PIP_INSTALL = $(BIN)/pip install $$(test -t 2 || echo --quiet) --disable-pip-version-check --constraint constraints.txt
OUT ?= out/bench-gpu

.PHONY: demo serve docs test test-services test-nightly test-clients chaos images check format
.PHONY: bench bench-gpu bench-scheduling clean

demo: $(RUNS)
	@$(BIN)/python examples/demo.py

serve: $(RUNS)
	@$(BIN)/python -m gateway --local

test: $(STAMP) $(VISION) $(QUANTIZE)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# Real servers and namespaces; .ci/install-packages installs what these tests need, and they skip what is missing.
test-services: $(STAMP) $(VISION)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m "services and not nightly"

test-nightly: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) -m nightly

# Real clients, installed into .clients (needs the network and npm); not part of CI. Writes docs/results/clients.md.
test-clients: $(STAMP)
	$(BIN)/python -m tests.client_matrix

# A thousand random faults of real processes under load, 20 minutes; some sorts of them need root. Writes docs/results/chaos.md.
chaos: $(STAMP)
	$(BIN)/python -m tests.chaos --report docs/results/chaos.md

# Both container images, built and started, where this is root and has buildah and debootstrap; not part of CI.
images:
	@$(PYTHON) -m tests.images

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The documentation site, into out/site. Links and anchors that lead nowhere fail it.
docs: $(STAMP)
	@$(BIN)/python -m website

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)
	$(BIN)/python -m benchmarks

# With the PYTHON of a machine that has a CUDA device, which may be one without network: docs/profiles.md says what it needs.
bench-gpu:
	$(PYTHON) -m benchmarks.gpu --output $(OUT)

# Every goal of the scenario suite; writes docs/results. The last line needs a quiet machine: it runs in real time.
bench-scheduling: $(STAMP)
	$(BIN)/python -m benchmarks.scheduling --output docs/results
	$(BIN)/python -m benchmarks.scheduling.live --output docs/results

# What it takes to run, so that the first picture does not wait for what only tests need.
$(RUNS): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; name it with make PYTHON=python3.11")'
	@echo "Set-up, once, a few minutes. Step 1 of 3: a virtual environment in .venv"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Step 2 of 3: torch, by far the largest package"
	@$(PIP_INSTALL) torch
	@echo "Step 3 of 3: everything else"
	@$(PIP_INSTALL) --editable '.[demo]'
	@touch $@

$(STAMP): $(RUNS)
	@echo "What tests and checks need beside that"
	@$(PIP_INSTALL) --editable '.[dev]'
	@touch $@

# For tests alone, and not into .venv: tests/torchvision.py says why.
$(VISION): $(STAMP)
	@mkdir -p .torchvision
	@$(PIP_INSTALL) --no-deps --upgrade --target .torchvision torchvision || echo "tests of Qwen-Image-Edit will skip"
	@touch $@

# Likewise: tests/quantize.py says why.
$(QUANTIZE): $(STAMP)
	@mkdir -p .quantize
	@$(PIP_INSTALL) --no-deps --upgrade --target .quantize torchao bitsandbytes || echo "tests of quantised weights will skip"
	@touch $@

clean:
	rm -rf .venv .torchvision .quantize build dist *.egg-info
