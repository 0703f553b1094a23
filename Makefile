# Set up everything in .venv at the root; `.venv/bin/boxlink` is then the command.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: all demo demo-upgrade test test-s3 test-aws check bench clean
all: .venv/ready

.venv/bin/pip:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"

.venv/ready: pyproject.toml | .venv/bin/pip
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/ready-dev: pyproject.toml | .venv/bin/pip
	$(BIN)/pip install --quiet --editable . --group dev
	touch .venv/ready $@

.venv/ready-bench: pyproject.toml | .venv/bin/pip
	$(BIN)/pip install --quiet --editable . --group bench
	touch .venv/ready $@

demo: .venv/ready
	$(BIN)/python -m tools.demo $(ARGS)

demo-upgrade: .venv/ready
	$(BIN)/python -m tools.demo.upgrade $(ARGS)

# Those of them that neither mount nor serve, two at a time; then the others, alone with the machine's devices and ports.
SIDE_BY_SIDE := tests/unit tests/property tests/golden tests/sim tests/engine
test: .venv/ready-dev
ifdef ARGS
	$(BIN)/python -m pytest $(ARGS)
else
	$(BIN)/python -m pytest -n 2 $(SIDE_BY_SIDE); side=$$?; \
	$(BIN)/python -m pytest $(SIDE_BY_SIDE:%=--ignore=%) && exit $$side
endif

test-s3: .venv/ready-dev
	$(BIN)/python -m tools.test_s3 $(ARGS)

test-aws: .venv/ready-dev
	$(BIN)/python -m tools.test_aws $(ARGS)

check: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/ready-bench
	$(BIN)/python -m tools.bench $(ARGS)

clean:
	rm -rf .venv .cache build dist
