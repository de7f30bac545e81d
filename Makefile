# make demo: set up and run the main job on an embedded corpus.  make test: set up and run the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TRACKERS := build/trackers

.PHONY: setup demo test test-slow test-trackers lint clean

setup: $(READY)

$(READY): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Folio needs Python 3.11 or later, '$(PYTHON)' is older; run: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
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

# MLflow wants an older pyarrow than constraints.txt has: it and W&B live apart, and borrow everything else.
test-trackers: $(TRACKERS)/.ready
	$(TRACKERS)/bin/python -m pytest tests/test_trackers.py -k 'mlflow or wandb'

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

clean:
	rm -rf $(VENV) runs/demo shards/synthetic build *.egg-info
