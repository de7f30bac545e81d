# make demo: set up, then build a small corpus and train on it.  make test: set up and run the tests.
# make wheel: write the wheel to dist/.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
EXTRAS := $(VENV)/.extras

.PHONY: setup demo test test-slow lint docs wheel clean

setup: $(READY)

$(READY): setup.cfg setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Folio needs Python 3.11 or later, but '$(PYTHON)' is older; run: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@echo "Installing Folio and its libraries in $(VENV), which takes some minutes:"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[offline,plot,mojibake,languages,html,warc,huggingface,hub,gguf,dev]'
	@touch $@

demo: setup
	$(BIN)/preprocess build --corpus synthetic
	$(BIN)/python train/train.py configs/demo.py
	$(BIN)/python train/plot.py runs/demo

test: setup
	$(BIN)/python -m pytest -n auto --maxprocesses 4

test-slow: $(EXTRAS)
	$(BIN)/python -m pytest -m slow -n auto --maxprocesses 2

# MLflow and W&B bring 60 packages, which only slow tests need.
$(EXTRAS): $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all]'
	@touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Writes the tables of settings into docs/, and the pages as a site to build/site. A broken link is an error.
docs: setup
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file docs/site/mkdocs.yml

# Removes build/lib first: setuptools would also pack modules that an earlier build left there.
wheel: setup
	rm -rf build/lib
	$(BIN)/python -m pip wheel --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) runs/demo shards/synthetic build dist *.egg-info
