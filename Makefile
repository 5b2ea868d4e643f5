# `make demo` and `make test` first make .venv with the versions in constraints.txt;
# `touch constraints.txt` makes it again. VENV= (nothing, also as `export VENV=`) uses the active
# environment, such as conda's, and installs nothing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(if $(VENV),$(VENV)/bin,$(shell dirname "$$(command -v python)"))
INSTALLED := $(if $(VENV),$(VENV)/installed,active)
INSTALLED_DEV := $(if $(VENV),$(VENV)/installed-dev,active)
ARGS ?=
# Extras of the package: cpu or gpu (faiss), text (text-conditional models, LoRA), slurm, dashboards.
EXTRAS ?= cpu,text
# Number of processes of the tests; each runs one file at a time.
WORKERS ?= 2
PARALLEL := -n $(WORKERS) --dist loadfile
# The runtime.outputs whose finished artifacts make sync sends, and make dashboard shows.
OUTPUTS ?= outputs
# The launcher of sweeps: auto is slurm where a cluster answers, else local.
LAUNCHER ?= auto
# A folder of faces, for make attacks: FACES='runtime.data_root=... data.source.folder=...'.
FACES ?=
SWEEPING = $(BIN)/sidepipe-sweep $(1) $(SWEEP)
# Before any target, so that a missing name installs nothing.
OF_SWEEP := $(firstword $(filter sweep cancel report,$(MAKECMDGOALS)))
$(if $(SWEEP),,$(if $(OF_SWEEP),$(error SWEEP must be set, for example make $(OF_SWEEP) SWEEP=subset_size; \
  sweeps: $(basename $(notdir $(wildcard conf/sweep/*.yaml))))))

.PHONY: setup demo demo-text demo-table docs api run test test-fast test-slurm bench bench-large bench-gpu check format status clean help
.PHONY: sweep cancel report attacks sync dashboard active

help:
	@echo "make demo      the whole pipeline on the included digits, with its report"
	@echo "make demo-text a text-conditional model: memorized prompts detected, explained and mitigated;"
	@echo "               ARGS=mitigations=trained trains two more models, with mitigations"
	@echo "make demo-table  rows of a table: plain samples, refinement and SIDE, with its report"
	@echo "make docs      make demo, and write its numbers to README.md and docs/results/demo.md"
	@echo "make api       write docs/api.md from the docstrings of the Python API"
	@echo "make test      all tests; make test-fast: only fast ones; make test-slurm: those for a Slurm cluster"
	@echo "make bench     time and memory of slow parts, compared with plain implementations"
	@echo "make bench-large   a million images: memory, and resuming a killed run (IMAGES=1000000)"
	@echo "make bench-gpu     what needs an accelerator, in less than ten minutes; without one it ends with one line"
	@echo "make check     ruff and pyright"
	@echo "make run ARGS='...'     sidepipe with any overrides"
	@echo "make status ARGS='...'  the state of each artifact for these overrides"
	@echo "make sweep SWEEP=subset_size ARGS='...'    run a grid of configs, on Slurm or here; DRY=1: only plan"
	@echo "make status|report|cancel SWEEP=...       its states; its results so far; cancel its jobs"
	@echo "make attacks FACES='...'  all sweeps of docs/results, many hours; without FACES: only digits"
	@echo "make sync | make dashboard                W&B: send finished artifacts (SWEEP=...); save the workspace"
	@echo "make setup EXTRAS=gpu,text,slurm,dashboards    only install"

setup: $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/sidepipe experiment=demo $(ARGS)

docs: demo api
	$(BIN)/python docs/demo.py

api: $(INSTALLED)
	$(BIN)/python docs/api.py

demo-text: $(INSTALLED)
	$(BIN)/sidepipe experiment=demo_text $(ARGS)

demo-table: $(INSTALLED)
	$(BIN)/sidepipe experiment=demo_table $(ARGS)

run: $(INSTALLED)
	$(BIN)/sidepipe $(ARGS)

status: $(INSTALLED)
	@$(if $(SWEEP),$(call SWEEPING,status) $(ARGS),\
	  $(BIN)/sidepipe stage=status $(if $(ARGS),$(ARGS),experiment=demo))

sweep: $(INSTALLED)
	$(call SWEEPING,run) --launcher $(LAUNCHER) $(if $(DRY),--dry) $(ARGS)

cancel report: $(INSTALLED)
	@$(call SWEEPING,$@) $(ARGS)

attacks: $(INSTALLED)
	@for sweep in $(basename $(notdir $(wildcard conf/sweep/attack_*.yaml))); do \
	  faces=; \
	  if grep -qE "/(experiment: faces|data: celeba)" conf/sweep/$$sweep.yaml; then \
	    faces="$(FACES)"; [ -n "$$faces" ] || { echo "$$sweep: skipped, it needs FACES"; continue; }; \
	  fi; \
	  $(BIN)/sidepipe-sweep run $$sweep --launcher $(LAUNCHER) $(if $(DRY),--dry) $(ARGS) $$faces || exit 1; \
	  $(if $(DRY),,$(BIN)/sidepipe-sweep report $$sweep $(ARGS) $$faces || exit 1;) \
	done

# ARGS: --project P, --entity E, --images.
sync: $(INSTALLED)
	$(BIN)/python -m sidepipe.cli.sync $(OUTPUTS) $(if $(SWEEP),--sweep $(SWEEP)) $(ARGS)

dashboard: $(INSTALLED)
	$(BIN)/python -m sidepipe.cli.dashboards --outputs $(OUTPUTS) $(if $(SWEEP),--sweep $(SWEEP)) $(ARGS)

test: $(INSTALLED_DEV)
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

test-fast: $(INSTALLED_DEV)
	$(BIN)/python -m pytest $(PARALLEL) -m "not (slow or e2e or browser or gpu or slurm)" $(ARGS)

test-slurm: $(INSTALLED_DEV)
	$(BIN)/python -m pytest -m slurm $$(grep -rl mark.slurm tests --include='*.py') $(ARGS)

bench: $(INSTALLED)
	@for file in $(filter-out benchmarks/large.py benchmarks/gpu.py,$(wildcard benchmarks/*.py)); do echo "$$file"; $(BIN)/python "$$file" || exit 1; done

bench-large: $(INSTALLED)
	$(BIN)/python benchmarks/large.py $(if $(IMAGES),--images $(IMAGES))

bench-gpu: $(INSTALLED)
	$(BIN)/python benchmarks/gpu.py

check: $(INSTALLED_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

format: $(INSTALLED_DEV)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

active:
	@test -x "$(BIN)/sidepipe" || { echo "VENV= uses the active environment, and $(BIN) has no sidepipe;" \
	  "remedy: conda env create -f environment.yml && conda activate sidepipe"; exit 1; }

$(VENV)/python-ok:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "sidepipe needs Python 3.11 or newer, and $(PYTHON) is older; remedy: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/installed: $(VENV)/python-ok pyproject.toml constraints.txt
	@echo "installing the packages of constraints.txt into $(VENV): about 1.8 GB of downloads the first time"
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cpu,dev,features,text,medical,slurm,dashboards]'
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
