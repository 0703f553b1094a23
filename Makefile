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

# Those of them that neither mount nor serve, two at a time; then two rows beside each other: all that needs loop devices,
# or a stand-in for a cloud, is in the first, since two of them would meet at the devices.
SIDE_BY_SIDE := tests/unit tests/property tests/golden tests/sim tests/engine
IN_E2E_TOO := $(wildcard tests/e2e/test_proxy_*.py tests/e2e/test_[cru]*.py)
AT_DEVICES := $(wildcard tests/mount/test_*snapshot*.py tests/mount/test_*swap*.py)
FIRST_ROW := tests/aws tests/conformance tests/bench $(AT_DEVICES) tests/e2e $(IN_E2E_TOO:%=--ignore=%)
SECOND_ROW := tests/mount $(AT_DEVICES:%=--ignore=%) $(IN_E2E_TOO)
test: .venv/ready-dev
ifdef ARGS
	$(BIN)/python -m pytest $(ARGS)
else
	$(BIN)/python -m pytest -n 2 $(SIDE_BY_SIDE); side=$$?; \
	mkdir -p .cache; \
	$(BIN)/python -m pytest $(FIRST_ROW) > .cache/first-row.log 2>&1 & \
	$(BIN)/python -m pytest $(SECOND_ROW); second=$$?; \
	wait $$!; first=$$?; \
	cat .cache/first-row.log; \
	exit $$((side || first || second))
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
