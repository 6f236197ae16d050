# make demo | test | test-quick | torture | lint | typecheck | bench | bench-quick | bench-check | clean
#
# Everything runs in .venv, made by the first target that needs it and brought up to date when pyproject.toml or
# constraints.txt has changed. Needs nothing but Python 3.11 or newer (PYTHON=... to choose one). ARGS=... goes to the program.

PYTHONS := $(PYTHON) python3 python3.11 python3.12 python3.13
WORKERS ?= 3
QUICK_WORKERS ?= 2
BIN := .venv/bin
INSTALLED := .venv/installed
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt

KILLS ?= 5000
SCHEDULES ?= 2000
STATES ?= 20000000
EXAMPLES ?= 2000
APPENDS ?= 10000
FUZZ_S ?= 600

PEERS := .venv-bench
PUBLISHED := .venv-bench-published
PEER_INSTALL := -m pip install -qq --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-quick torture lint typecheck bench bench-quick bench-check clean

demo: $(INSTALLED)
	$(BIN)/python examples/cartpole.py $(ARGS)

test: $(INSTALLED)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

test-quick: $(INSTALLED)
	$(BIN)/python -m pytest -n $(QUICK_WORKERS) --dist worksteal -m "not slow" $(ARGS)

# The long versions of the proofs, as long as asked for; each prints its seed. TENSORBLOB_SEED=... repeats a run.
torture: $(INSTALLED)
	$(PIP_INSTALL) --no-build-isolation --editable '.[torture]'
	TENSORBLOB_CRASH_STATES=$(STATES) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --timeout=0 tests/crash
	TENSORBLOB_FAULTS=all TENSORBLOB_KILLS=$(KILLS) TENSORBLOB_SCHEDULES=$(SCHEDULES) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --timeout=0 \
		tests/test_fault_sweep.py tests/test_kill_loop.py tests/test_schedules.py
	TENSORBLOB_APPENDS=$(APPENDS) $(BIN)/python -m pytest --timeout=0 tests/test_shared.py -k scale
	TENSORBLOB_FUZZ_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --timeout=0 tests/test_hostile.py
	$(BIN)/python tests/fuzz/fuzz_manifest.py -max_total_time=$(FUZZ_S)

lint: $(INSTALLED)
	$(BIN)/ruff format --check
	$(BIN)/ruff check

typecheck: $(INSTALLED)
	$(BIN)/mypy

# The targets, then the same work by what one would use instead, in environments of their own: hours, on a quiet machine, and
# bench/results/ are written anew. ARGS="open" takes those workloads only, and writes nothing. Redis needs Debian's
# redis-server; what is not there is left out by name.
bench: $(PEERS)/installed $(PUBLISHED)/installed
	$(PEERS)/bin/python bench $(ARGS)

bench-quick: $(PEERS)/installed $(PUBLISHED)/installed
	$(PEERS)/bin/python bench --quick $(ARGS)

# Are we as fast as the committed results say, each held against its limit?
bench-check: $(PEERS)/installed
	$(PEERS)/bin/python bench/check.py $(ARGS)

clean:
	rm -rf .venv .venv-bench .venv-bench-published .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist cartpole.png
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/pip: # the last thing that venv makes
	@for python in $(PYTHONS); do \
		if $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "$$python -m venv .venv"; exec $$python -m venv .venv; \
		fi; \
	done; \
	echo "Needs Python 3.11 or newer with venv; none of these is: $(PYTHONS). Install one, or say make PYTHON=/path/to/python3" >&2; \
	exit 1

# The build backend first: pip would fetch an unpinned one into its isolated build environment.
$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/pip
	@echo "installing into .venv: a minute or two"
	@$(PIP_INSTALL) hatchling editables
	@$(PIP_INSTALL) --no-build-isolation --editable '.[bench,cli,dev,examples]'
	@touch $@

$(PEERS)/installed: pyproject.toml constraints.txt bench/peers/requirements.txt | $(BIN)/pip
	@echo "installing into $(PEERS): a few minutes"
	@$(BIN)/python -m venv $(PEERS)
	@$(PEERS)/bin/python $(PEER_INSTALL) hatchling editables
	@$(PEERS)/bin/python $(PEER_INSTALL) --no-build-isolation --editable '.[bench]' --requirement bench/peers/requirements.txt
	@touch $@

$(PUBLISHED)/installed: constraints.txt bench/peers/published.txt | $(BIN)/pip
	@echo "installing into $(PUBLISHED): a minute or two"
	@$(BIN)/python -m venv $(PUBLISHED)
	@$(PUBLISHED)/bin/python $(PEER_INSTALL) --requirement bench/peers/published.txt
	@touch $@
