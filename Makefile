# Two commands: `make demo` and `make test`. Both make .venv first, with the versions in
# constraints.txt; `touch constraints.txt` makes it again.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: demo run test bench check format status clean help

help:
	@echo "make demo      the whole pipeline on the embedded digits, and its report"
	@echo "make test      the tests"
	@echo "make bench     seconds and memory of what is slow, beside a plain implementation"
	@echo "make check     ruff and pyright"
	@echo "make run ARGS='...'     sidepipe with any overrides"
	@echo "make status ARGS='...'  what is done, running and missing for these overrides"

demo: $(VENV)/installed
	$(BIN)/sidepipe experiment=demo $(ARGS)

run: $(VENV)/installed
	$(BIN)/sidepipe $(ARGS)

status: $(VENV)/installed
	@$(BIN)/sidepipe stage=status $(if $(ARGS),$(ARGS),experiment=demo)

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest $(ARGS)

bench: $(VENV)/installed
	@for file in benchmarks/*.py; do echo "$$file"; $(BIN)/python "$$file" || exit 1; done

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

format: $(VENV)/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/python-ok:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "sidepipe needs Python 3.11 or newer, and $(PYTHON) is older; remedy: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/installed: $(VENV)/python-ok pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cpu]'
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cpu,dev,features]'
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
