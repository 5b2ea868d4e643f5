# Two commands: `make demo` and `make test`. Both make .venv first, with the versions in
# constraints.txt; `touch constraints.txt` makes it again.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
# Of the package: cpu or gpu (faiss), text (models with captions, LoRA), and what a cluster's users
# may want: slurm, dashboards.
EXTRAS ?= cpu,text
# Tests run in this many processes, one file at a time in each.
WORKERS ?= 2
PARALLEL := -n $(WORKERS) --dist loadfile
# Where runs were tracked offline, for make sync.
WANDB ?= outputs/wandb
# Of sweeps: auto is slurm where sbatch answers, else local.
LAUNCHER ?= auto
# Of attacks: where a folder of faces is, FACES='runtime.data_root=... data.source.folder=...'.
FACES ?=
SWEEPING = $(BIN)/sidepipe-sweep $(1) $(or $(SWEEP),$(error say which sweep: make $@ SWEEP=subset_size; \
  there are: $(basename $(notdir $(wildcard conf/sweep/*.yaml)))))

.PHONY: setup demo demo-text docs api run test test-fast test-slurm bench bench-large check format status clean help
.PHONY: sweep cancel report attacks sync dashboard

help:
	@echo "make demo      the whole pipeline on the embedded digits, and its report"
	@echo "make demo-text a model with captions: memorized prompts found, explained and mitigated"
	@echo "make docs      make demo, and its numbers written into README.md and docs/results/demo.md"
	@echo "make api       docs/api.md, made from the docstrings of the Python API"
	@echo "make test      the tests; make test-fast those that take no seconds; make test-slurm those that need a Slurm cluster"
	@echo "make bench     seconds and memory of what is slow, compared with a plain implementation"
	@echo "make bench-large   a million images: memory, and that a killed run resumes (IMAGES=1000000)"
	@echo "make check     ruff and pyright"
	@echo "make run ARGS='...'     sidepipe with any overrides"
	@echo "make status ARGS='...'  what is done, running and missing for these overrides"
	@echo "make sweep SWEEP=subset_size ARGS='...'    a grid of configs, on Slurm or here; DRY=1 only plans"
	@echo "make status|report|cancel SWEEP=...       how far it is; its results so far; its jobs"
	@echo "make attacks FACES='...'  every sweep of docs/results, many hours; no FACES: digits alone"
	@echo "make sync | make dashboard                W&B: uploads what was tracked offline; the workspace"
	@echo "make setup EXTRAS=gpu,text,slurm,dashboards    only installs"

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
	    faces="$(FACES)"; [ -n "$$faces" ] || { echo "$$sweep: left out, it needs FACES"; continue; }; \
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
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cpu,dev,features,text,slurm,dashboards]'
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
