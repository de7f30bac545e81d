# make demo: set up, then build a small corpus and train on it.  make test: set up and run the tests.
# make wheel: write the wheel to dist/.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TRACKERS := build/trackers

.PHONY: setup demo test test-slow test-trackers lint wheel clean

setup: $(READY)

$(READY): setup.cfg setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Folio needs Python 3.11 or later, but '$(PYTHON)' is older; run: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[offline,plot,mojibake,huggingface,dev]'
	@touch $@

demo: setup
	$(BIN)/preprocess build --corpus synthetic
	$(BIN)/python train/train.py configs/demo.py
	$(BIN)/python train/plot.py runs/demo

test: setup
	$(BIN)/python -m pytest

test-slow: setup test-trackers
	$(BIN)/python -m pytest -m slow

# MLflow needs an older pyarrow than constraints.txt has. It and W&B are installed in a second environment, which
# takes all other packages from the first.
test-trackers: $(TRACKERS)/.ready
	$(TRACKERS)/bin/python -m pytest tests/train/trackers -k 'mlflow or wandb'

$(TRACKERS)/.ready: $(READY)
	$(BIN)/python -m venv --clear $(TRACKERS)
	$(TRACKERS)/bin/python -m pip install --quiet mlflow==3.17.2 wandb==0.31.0
	$(BIN)/python -c "import sysconfig; print(f'import site; site.addsitedir({sysconfig.get_path(\"purelib\")!r})')" \
	  > $$($(TRACKERS)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/folio.pth
	@touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Removes build/lib first: setuptools would also pack modules that an earlier build left there.
wheel: setup
	rm -rf build/lib
	$(BIN)/python -m pip wheel --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) runs/demo shards/synthetic build dist *.egg-info
