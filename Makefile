# One command each: `make demo` shows the main job, `make test` proves it. See README.md.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo dev test test-slow test-all test-loop coverage lint format bench lock clean
.DEFAULT_GOAL := demo

$(READY): requirements.lock pyproject.toml deploy/system-packages.sh
	@echo "installing into $(VENV) ..." >&2
	@sh deploy/system-packages.sh
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(READY)
	@$(BIN)/masterkey demo $(ARGS)

dev: $(READY)
	@$(BIN)/masterkey dev $(ARGS)

# In two processes, because tests wait more than they compute; tests/ordering.py says which of them stay together.
PYTEST = $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup
JOBS ?= 2

test: $(READY)
	$(PYTEST) -m "not slow" $(ARGS)

test-slow: $(READY)
	$(PYTEST) -m slow $(ARGS)

test-all: $(READY)
	$(PYTEST) $(ARGS)

# The tests 20 times, in random order, half of the runs with a busy core: shows what flakes.
test-loop: $(READY)
	.ci/loop $(ARGS)

# The rooms that hold keys have no untested line or branch; this fails when it has.
coverage: $(READY)
	$(BIN)/python -m pytest -q tests/strongroom tests/keystores/test_offline.py tests/process/test_installed_code.py \
		--cov=activities/strongroom --cov=activities/crypto --cov=activities/oneshot --cov-branch \
		--cov-report=term-missing --cov-fail-under=100
	rm -f .coverage*

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/python -m tests.bench $(ARGS)

lock:
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
		--no-strip-extras --no-header --no-annotate --no-emit-index-url --quiet $(ARGS) -o requirements.lock

clean:
	rm -rf $(VENV) run .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
