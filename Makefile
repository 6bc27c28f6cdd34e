# Every target does its own set-up; on a fresh machine `make demo` or `make test` is the first and only command.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CODE := shared_models client server simulation deploy tests $(wildcard benchmarks)

export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export RAY_USAGE_STATS_ENABLED := 0

.DEFAULT_GOAL := help
.PHONY: help demo demo-network test lint test-system clean

help:
	@echo "make demo         four virtual hospitals, no data set needed: train, compare, report (about 3 minutes)"
	@echo "make demo-network a coordinator and three hospitals, each a process of its own, over TLS (about 2 minutes)"
	@echo "make test         lint, types, import arrows and the quick tests"
	@echo "make test-system  whole processes: kills, resumes, Ray (several minutes)"
	@echo "make clean        remove the environment and the caches; runs/ stays"

# The stamps are newer than what they were installed from, or the installation is done again.
$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

$(VENV)/installed-ray: $(VENV)/installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,ray]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/consilium simulate examples/demo.yaml --out runs/demo-$$(date -u +%Y%m%d-%H%M%S)

demo-network: $(VENV)/installed
	$(BIN)/python -m deploy.demo_network

lint: $(VENV)/installed
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest -m "not system"

# The faults of a network are mostly waited out, minutes each: with the pages' commands they run beside the rest.
BESIDE := tests/system/test_network_faults.py tests/docs

test-system: $(VENV)/installed-ray
	@log=$$(mktemp); $(BIN)/python -m pytest -m system $(BESIDE) >$$log 2>&1 & beside=$$!; \
	$(BIN)/python -m pytest -m system $(addprefix --ignore=,$(BESIDE)); rest=$$?; \
	wait $$beside; code=$$?; cat $$log; rm -f $$log; exit $$((rest || code))

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find $(wildcard $(CODE)) -name __pycache__ -type d -prune -exec rm -rf {} +
