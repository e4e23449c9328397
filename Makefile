# From clone to figures:  make figures        (GNU make 3.81 or newer, Python 3.11 or newer)
#
# Packages go into the active virtual environment or conda environment (not conda's base), otherwise into .venv.
# What is run again is decided by content, in lrp/build/keys.py, not by the times of files.
#
#   PROFILE=full        real data and pretrained networks, into figures/full/ (default: quick)
#   SEED=1 DEVICE=cuda  other parameters than the notebooks' own
#   FORCE=1             run also what is up to date
#   JOBS=1              notebooks at a time, which share the cores (default: 2, and 1 for PROFILE=full, which takes more memory)
#   PYTHON=python3.12   the Python from which .venv is made

PROFILE ?= quick
PYTHON  ?=
JOBS    ?= $(if $(filter full,$(PROFILE)),1,2)
START   := $(shell date +%s)

ifneq ($(and $(VIRTUAL_ENV),$(wildcard $(VIRTUAL_ENV)/bin/python)),)
  PREFIX := $(VIRTUAL_ENV)
else ifneq ($(and $(CONDA_PREFIX),$(filter-out base,$(CONDA_DEFAULT_ENV)),$(wildcard $(CONDA_PREFIX)/bin/python)),)
  PREFIX := $(CONDA_PREFIX)
else
  PREFIX := .venv
endif
PY := $(PREFIX)/bin/python

NOTEBOOKS := $(sort $(wildcard notebooks/[0-9][0-9]_*.ipynb))
STEMS     := $(patsubst notebooks/%.ipynb,%,$(NOTEBOOKS))
NUMBERS   := $(foreach stem,$(STEMS),$(firstword $(subst _, ,$(stem))))
RUNS      := $(addprefix run-,$(STEMS))

# the parameters that every notebook has (tests/test_repo.py holds the two together)
PARAMETERS := -p PROFILE=$(PROFILE) $(if $(SEED),-p SEED=$(SEED)) $(if $(DEVICE),-p DEVICE=$(DEVICE))
FORCED     := $(if $(FORCE),--force)
BUILD      ?= $(PROFILE)
PARALLEL    = $(if $(findstring -j,$(MAKEFLAGS)),,-j$(JOBS))
RUN        := "$(PY)" -m lrp.build.runs
GALLERY    := "$(PY)" -m lrp.build.gallery
STRIP_KEYS := metadata.papermill cell.metadata.papermill metadata.language_info.version metadata.kernelspec.display_name

# On Linux, memory of large tensors stays with the process instead of going back to the system after each operation:
# large batches run several times faster. Elsewhere this is ignored.
export MALLOC_MMAP_THRESHOLD_ := 17179869184
export MALLOC_TRIM_THRESHOLD_ := 17179869184

.DEFAULT_GOAL := help
.PHONY: help env lock data train coverage fuzz bench figures smoke check test lint format contents book student slides lab \
        status why clean distclean runs $(RUNS) $(NUMBERS)

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
	@echo "  make 01         one notebook, by number: $(NUMBERS)"
	@echo "  PROFILE=full, SEED=1, DEVICE=cuda and -j2 work with figures and with numbers"

env: ## set up the Python environment (every target does this by itself, once)
	@for python in "$(PY)" $(PYTHON) python3 python python3.13 python3.12 python3.11; do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    exec "$$python" -m lrp.build.environment "$(PREFIX)"; \
	  fi; \
	done; \
	echo "[env] error: no Python 3.11 or newer found; name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; \
	exit 1

figures: env ## regenerate every figure whose notebook, code, environment or data changed
	@$(MAKE) --no-print-directory -k $(PARALLEL) runs || \
	  { echo "make figures: not every notebook ran; see above, and 'make status'" >&2; exit 1; }
	@$(GALLERY) merge --profile $(PROFILE) --since $(START)

runs: $(RUNS)

$(RUNS): run-%: | env
	@$(RUN) run $* $(PARAMETERS) $(FORCED) --build $(BUILD)

$(NUMBERS): %: env
	@$(RUN) run $@ $(PARAMETERS) $(FORCED)
	@$(GALLERY) merge --profile $(PROFILE) --since $(START)

smoke: env ## run every notebook into build/smoke/, leaving figures/ alone
	@$(MAKE) --no-print-directory -k runs BUILD=smoke
	@$(GALLERY) merge --profile $(PROFILE) --build smoke --since $(START)

check: env ## compare the regenerated numbers with the committed ones
	@$(RUN) fresh $(PARAMETERS)
	@$(GALLERY) check --profile $(PROFILE)

test: env ## run the tests (those marked slow: make test ARGS="-m slow")
	@"$(PY)" -m pytest $(ARGS)

lint: env ## check code and notebooks without running them
	@"$(PY)" -m ruff check .
	@"$(PY)" -m ruff format --check .
	@$(if $(NOTEBOOKS),"$(PY)" -m nbstripout --verify --keep-id --extra-keys "$(STRIP_KEYS)" $(NOTEBOOKS) || \
	  { echo "notebooks are not stripped: make format" >&2; exit 1; })
	@"$(PY)" -m lrp.build.lint
	@"$(PY)" -m lrp.build.pages --check

format: env ## mend what lint can mend by itself: format, order of imports, outputs in notebooks
	@"$(PY)" -m ruff check --fix-only --quiet .
	@"$(PY)" -m ruff format .
	@$(if $(NOTEBOOKS),"$(PY)" -m nbstripout --keep-id --extra-keys "$(STRIP_KEYS)" $(NOTEBOOKS))

contents: env ## write the table of contents, the links between notebooks and README's table anew
	@"$(PY)" -m lrp.build.pages

book: figures ## the course as a site that works offline, in build/book/html
	@"$(PY)" -m lrp.build.book

student: env ## the notebooks without solutions, in build/student
	@"$(PY)" -m lrp.build.editions

slides: figures ## decks of the notebooks, in build/slides
	@"$(PY)" -m lrp.build.slides $(NB)

lab: env ## open the course in JupyterLab
	@"$(PY)" -m jupyterlab --ServerApp.root_dir=. notebooks/00_start_here.ipynb

data: env ## download the data and weights of the full profile into data/raw/
	@"$(PY)" -m lrp.data.downloads

train: env ## train the small checkpoints again, from fixed seeds, into data/checkpoints/
	@"$(PY)" -m lrp.data.training

coverage: env ## explain the networks of torchvision and timm, beside zennit and captum (about an hour; it can be stopped)
	@"$(PY)" -m tests.bench.coverage $(ARGS)

fuzz: env ## hold 10,000 random networks against a second derivation of their maps (about 40 minutes; make fuzz ARGS="SEED")
	@"$(PY)" -W ignore tests/fuzz.py $(or $(ARGS),0 10000)

bench: env ## what an explanation costs, in gradients, beside zennit and captum (about 15 minutes)
	@"$(PY)" -m tests.bench.benchmark $(ARGS)
	@$(if $(ARGS),,"$(PY)" -m tests.bench.benchmark_metrics)

status: env ## which notebooks are fresh, stale, failed or never run
	@$(RUN) status $(PARAMETERS)

why: env ## what changed since a notebook ran: make why NB=01
	@$(RUN) why $(NB) $(PARAMETERS)

lock: ## resolve environment.lock anew from the bounds in pyproject.toml
	@test -x build/uv/bin/uv || \
	  { $(or $(PYTHON),python3) -m venv build/uv && build/uv/bin/python -m pip install --quiet uv; }
	@build/uv/bin/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --upgrade --quiet \
	  --no-header --no-annotate --no-emit-index-url --no-emit-find-links --output-file environment.lock

clean: ## remove executed notebooks and logs (build/)
	rm -rf build

distclean: clean ## also remove generated intermediates and .venv; never downloads in data/raw/
	rm -rf data/cache .venv .pytest_cache .ruff_cache .hypothesis
	find lrp tests -name __pycache__ -type d -prune -exec rm -rf {} +
