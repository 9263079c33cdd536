# Two commands do everything: `make figure3` and `make test`. Both make .venv and install what they need into it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Where the drawn data set is cached; deleting it costs ten seconds of drawing.
export LANDSCAPE_CACHE ?= $(CURDIR)/.cache/landscape

.PHONY: figure3 test test-slurm lint smoke notebooks clean

figure3: $(VENV)/.installed-demo
	$(BIN)/landscape train --model vit_tiny_64 --output runs/vit --label ViT
	$(BIN)/landscape train --model vmamba_tiny_64 --output runs/vmamba --label VMamba
	$(BIN)/landscape train --model simba_tiny_64 --output runs/simba --label Simba
	$(BIN)/landscape spectra checkpoints.yaml -o spectra.h5
	$(BIN)/landscape figure spectra.h5 -o figures/figure3.png

# One thread for each of two processes: small problems gain nothing from more.
test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --ignore tests/test_slurm_jobs.py

# On a Slurm of one node, which root can install and start in a container; two minutes.
test-slurm: $(VENV)/.installed-dev
	command -v slurmctld >/dev/null || apt-get install -y slurmctld slurmd slurm-client munge slurm-wlm-basic-plugins
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slurm tests/test_slurm.py tests/test_slurm_jobs.py

lint: $(VENV)/.installed-dev
	$(BIN)/flake8 landscape tests experiments notebooks
	$(BIN)/isort --check-only --diff landscape tests experiments notebooks
	$(BIN)/mypy
	$(BIN)/lint-imports --config setup.cfg

# The main job at its smallest size, on real pairs, from a folder of its own.
smoke: $(VENV)/.installed-demo
	PATH="$(abspath $(BIN)):$$PATH" sh tests/smoke.sh

# Runs them anew and keeps what they print and draw.
notebooks: $(VENV)/.installed-dev
	$(BIN)/python notebooks/execute.py

$(VENV)/bin/pip:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "landscape needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another with make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-demo: $(VENV)/bin/pip setup.cfg pyproject.toml
	$(BIN)/python -m pip install --editable '.[demo]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/bin/pip setup.cfg pyproject.toml
	$(BIN)/python -m pip install --editable '.[dev]'
	touch $@ $(VENV)/.installed-demo

clean:
	rm -rf $(VENV) build *.egg-info .cache
