# `make demo` and `make test` first make .venv with the versions in constraints.txt;
# `touch constraints.txt` makes it again.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
# Extras of the package: cpu or gpu (faiss), text (text-conditional models, LoRA), slurm, dashboards.
EXTRAS ?= cpu,text
# Number of processes of the tests; each runs one file at a time.
WORKERS ?= 2
PARALLEL := -n $(WORKERS) --dist loadfile
# The folder of the runs that were tracked offline, for make sync.
WANDB ?= outputs/wandb
# The launcher of sweeps: auto is slurm where a cluster answers, else local.
LAUNCHER ?= auto
# A folder of faces, for make attacks: FACES='runtime.data_root=... data.source.folder=...'.
FACES ?=
SWEEPING = $(BIN)/sidepipe-sweep $(1) $(or $(SWEEP),$(error SWEEP must be set, for example make $@ SWEEP=subset_size; \
  sweeps: $(basename $(notdir $(wildcard conf/sweep/*.yaml)))))

.PHONY: setup demo demo-text docs api run test test-fast test-slurm bench bench-large check format status clean help
.PHONY: sweep cancel report attacks sync dashboard

help:
	@echo "make demo      the whole pipeline on the included digits, with its report"
	@echo "make demo-text a text-conditional model: memorized prompts detected, explained and mitigated"
	@echo "make docs      make demo, and write its numbers to README.md and docs/results/demo.md"
	@echo "make api       write docs/api.md from the docstrings of the Python API"
	@echo "make test      all tests; make test-fast: only fast ones; make test-slurm: those for a Slurm cluster"
	@echo "make bench     time and memory of slow parts, compared with plain implementations"
	@echo "make bench-large   a million images: memory, and resuming a killed run (IMAGES=1000000)"
	@echo "make check     ruff and pyright"
	@echo "make run ARGS='...'     sidepipe with any overrides"
	@echo "make status ARGS='...'  the state of each artifact for these overrides"
	@echo "make sweep SWEEP=subset_size ARGS='...'    run a grid of configs, on Slurm or here; DRY=1: only plan"
	@echo "make status|report|cancel SWEEP=...       its states; its results so far; cancel its jobs"
	@echo "make attacks FACES='...'  all sweeps of docs/results, many hours; without FACES: only digits"
	@echo "make sync | make dashboard                W&B: upload runs that were tracked offline; save the workspace"
	@echo "make setup EXTRAS=gpu,text,slurm,dashboards    only install"

setup: $(VENV)/installed

demo: $(VENV)/installed
	$(BIN)/sidepipe experiment=demo $(ARGS)

docs: demo api
	$(BIN)/python docs/demo.py

api: $(VENV)/installed
	$(BIN)/python docs/api.py

demo-text: $(VENV)/installed
	$(BIN)/sidepipe experiment=demo_text $(ARGS)

run: $(VENV)/installed
	$(BIN)/sidepipe $(ARGS)

status: $(VENV)/installed
	@$(if $(SWEEP),$(call SWEEPING,status) $(ARGS),\
	  $(BIN)/sidepipe stage=status $(if $(ARGS),$(ARGS),experiment=demo))

sweep: $(VENV)/installed
	$(call SWEEPING,run) --launcher $(LAUNCHER) $(if $(DRY),--dry) $(ARGS)

cancel report: $(VENV)/installed
	@$(call SWEEPING,$@) $(ARGS)

attacks: $(VENV)/installed
	@for sweep in $(basename $(notdir $(wildcard conf/sweep/attack_*.yaml))); do \
	  faces=; \
	  if grep -q "/experiment: faces" conf/sweep/$$sweep.yaml; then \
	    faces="$(FACES)"; [ -n "$$faces" ] || { echo "$$sweep: skipped, it needs FACES"; continue; }; \
	  fi; \
	  $(BIN)/sidepipe-sweep run $$sweep --launcher $(LAUNCHER) $(if $(DRY),--dry) $(ARGS) $$faces || exit 1; \
	  $(if $(DRY),,$(BIN)/sidepipe-sweep report $$sweep $(ARGS) $$faces || exit 1;) \
	done

# ARGS: --project P, --entity E.
sync: $(VENV)/installed
	$(BIN)/python -m sidepipe.tracking.sync $(WANDB) $(ARGS)

dashboard: $(VENV)/installed
	$(BIN)/python -m sidepipe.cli.dashboards $(if $(SWEEP),--group $(SWEEP)) $(ARGS)

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

test-fast: $(VENV)/installed-dev
	$(BIN)/python -m pytest $(PARALLEL) -m "not (slow or e2e or browser or gpu or slurm)" $(ARGS)

test-slurm: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m slurm $(ARGS)

bench: $(VENV)/installed
	@for file in $(filter-out benchmarks/large.py,$(wildcard benchmarks/*.py)); do echo "$$file"; $(BIN)/python "$$file" || exit 1; done

bench-large: $(VENV)/installed
	$(BIN)/python benchmarks/large.py $(if $(IMAGES),--images $(IMAGES))

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
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cpu,dev,features,text,medical,slurm,dashboards]'
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
