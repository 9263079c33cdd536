# Two commands do everything: `make figure3` and `make test`. Both make .venv and install what they need into it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CODE := landscape tests experiments notebooks docs
# Where the drawn data set is cached; deleting it costs ten seconds of drawing.
export LANDSCAPE_CACHE ?= $(CURDIR)/.cache/landscape
# One thread for each of two processes: small problems gain nothing from more.
# Files of a second or two each: solvers, operators, statistics, manifests, texts.
FAST := $(foreach name, accuracy check_operator combine coordinates deprecation dispatch finite_difference gauss_newton \
	hvp_option intervals manifest names objective operator power run_status stability_threshold stored_optimizer suggestions \
	support surface_summary terminal vectors verdicts, $(wildcard tests/*/test_$(name).py))
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
# A file stays in one process, so that what its tests share is made once; tests/conftest.py has the longest begin.
BY_FILE := -n 2 --dist loadfile --no-loadscope-reorder
# The versions that the tests passed with last; `make INSTALL="pip install"` takes the newest.
INSTALL ?= pip install --constraint constraints.txt

.PHONY: help figure3 test test-fast test-slow test-slurm coverage lint format smoke docs notebooks dist constraints clean

help:  ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1 - /p' Makefile | awk -F ' - ' '{printf "%-12s %s\n", $$1, $$2}'

figure3: $(VENV)/.installed-demo  ## train three small CLIP models, measure them, draw figures/figure3.png
	$(BIN)/landscape train --model vit_tiny_64 --output runs/vit --label ViT
	$(BIN)/landscape train --model vmamba_tiny_64 --output runs/vmamba --label VMamba
	$(BIN)/landscape train --model simba_tiny_64 --output runs/simba --label Simba
	$(BIN)/landscape spectra checkpoints.yaml -o spectra.h5
	$(BIN)/landscape figure spectra.h5 -o figures/figure3.png

test: $(VENV)/.installed-dev  ## run the tests, without the slow campaigns
	$(PYTEST) $(BY_FILE) --ignore tests/workers/test_slurm_jobs.py

test-fast: $(VENV)/.installed-dev  ## run the tests of files that take a second or two; under a minute
	$(PYTEST) -q $(FAST)

test-slow: $(VENV)/.installed-dev  ## run campaigns and studies in full: kills, hostile inputs, trials; half an hour
	$(PYTEST) -n 2 --dist worksteal -m slow

test-slurm: $(VENV)/.installed-dev  ## test on a Slurm of one node, which root can install and start in a container
	command -v slurmctld >/dev/null || apt-get install -y slurmctld slurmd slurm-client munge slurm-wlm-basic-plugins
	$(PYTEST) -m slurm tests/workers/test_slurm.py tests/workers/test_slurm_jobs.py

coverage: $(VENV)/.installed-dev  ## run the tests and state which branches they take; half an hour, fails below 93 %
	$(PYTEST) $(BY_FILE) --ignore tests/workers/test_slurm_jobs.py --cov --cov-report=term

lint: $(VENV)/.installed-dev  ## check format, style, types and the order of imports
	$(BIN)/ruff check --quiet $(CODE)
	$(BIN)/ruff format --check --quiet $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports setup.cfg

format: $(VENV)/.installed-dev  ## bring the code into its format
	$(BIN)/ruff check --quiet --fix $(CODE)
	$(BIN)/ruff format --quiet $(CODE)

smoke: $(VENV)/.installed-demo  ## run the main job at its smallest size, on real pairs, in a folder of its own
	PATH="$(abspath $(BIN)):$$PATH" sh tests/smoke.sh

docs: $(VENV)/.installed-dev  ## build the site into site/; a broken link or a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

notebooks: $(VENV)/.installed-dev  ## run the notebooks anew and keep what they print and draw
	$(BIN)/python notebooks/execute.py

dist: $(VENV)/.installed-dev  ## build the wheel and the sdist into dist/
	$(BIN)/python -m build --outdir dist .

constraints: $(VENV)/.installed-dev  ## write the versions that .venv has now to constraints.txt
	$(BIN)/python -m pip freeze --exclude-editable --exclude setuptools > constraints.txt

$(VENV)/bin/pip:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "landscape needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another with make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-demo: $(VENV)/bin/pip setup.cfg pyproject.toml constraints.txt
	$(BIN)/python -m $(INSTALL) --editable '.[demo]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/bin/pip setup.cfg pyproject.toml constraints.txt
	$(BIN)/python -m $(INSTALL) --editable '.[dev]'
	touch $@ $(VENV)/.installed-demo

clean:  ## remove the environment, builds and the cache
	rm -rf $(VENV) build dist *.egg-info .cache
