# make demo   the whole path on this machine, in .venv
# make test   everything installed, all tests
# make help   the rest

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FRAMES ?=

# libgl1 and libglib2.0-0 are what opencv-python's wheels link to.
TEST_PACKAGES := mosquitto mosquitto-clients systemd openssh-client openssh-server libgl1 libglib2.0-0

.PHONY: help setup demo test doubles check format bench bench-export demo-bundle clean

help:
	@echo "make setup        .venv with everything: station, training, tests, checks"
	@echo "make demo         broker, station and subscriber on this machine; FRAMES=dir for your pictures"
	@echo "make test         all tests"
	@echo "make doubles      what the TensorRT tests stand on, in build/doubles (2 minutes, once)"
	@echo "make check        lint, format, types"
	@echo "make format       let ruff lay the code out"
	@echo "make bench        how quick training is beside bare PyTorch, and what memory it takes (15 minutes)"
	@echo "make bench-export what exporting takes, and Mask R-CNN in fixed shapes beside torchvision's (30 minutes)"
	@echo "make demo-bundle  train edge/demo/demo.icecam anew on drawn scenes (about 40 minutes)"
	@echo "make clean        remove .venv and build/"

setup: $(VENV)/everything

demo: | $(VENV)/station
	@scripts/need mosquitto
	@$(BIN)/icecam demo --out build/demo $(if $(FRAMES),--frames "$(FRAMES)")

test: doubles
	@scripts/need $(TEST_PACKAGES)
	$(BIN)/python -m pytest

doubles: $(VENV)/everything
	@command -v c++ >/dev/null || scripts/need g++
	@$(BIN)/python -m tests.doubles.prepare

check: $(VENV)/everything
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/everything
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/everything
	$(BIN)/python -m tests.bench.training --cpu-time --json build/bench-training.json

bench-export: $(VENV)/everything
	$(BIN)/python -m tests.bench.export_bundle --json build/bench-export.json
	$(BIN)/python -m tests.bench.static_maskrcnn --train-minutes 5 --threads 1 --json build/bench-maskrcnn.json

demo-bundle: $(VENV)/everything
	BIN=$(BIN) scripts/demo-bundle

clean:
	rm -rf $(VENV) build

$(BIN)/python:
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || scripts/need python3-venv
	$(PYTHON) -m venv $(VENV) && $(BIN)/pip install --quiet --upgrade pip || { rm -rf $(VENV); exit 1; }

# The station alone: no torch. Where everything is installed already, that serves too.
$(VENV)/station: pyproject.toml | $(BIN)/python
	@[ -e $(VENV)/everything ] || echo "installing the station into $(VENV) …"
	@[ -e $(VENV)/everything ] || $(BIN)/pip install --quiet --editable '.[station]'
	@touch $@

# opencv-python and opencv-python-headless overwrite each other's files: only one may be there.
$(VENV)/everything: pyproject.toml | $(BIN)/python
	@echo "installing everything into $(VENV): several GB, some minutes …"
	@$(BIN)/pip uninstall --quiet --yes opencv-python-headless
	$(BIN)/pip install --quiet --editable '.[train,test,check]'
	@touch $@
