# SPDX-FileCopyrightText: 2026 The pixel_llm authors
# SPDX-License-Identifier: Apache-2.0
# make demo: trains, evaluates and shows a small model. make test: all tests.
PYTHON ?= python3
VENV ?= .venv
PARITY_VENV ?= .venv-parity
BIN := $(VENV)/bin
RUN ?= runs/demo
SCENES = $(RUN)/scenes
RECORDS = $(RUN)/records

.PHONY: demo demo-joint test parity lint types lock clean

demo: $(VENV)/.installed
	$(BIN)/pixel-llm scenes --out $(SCENES) --seed 0 --train 8000 --val 200
	sh data/scenes.sh $(SCENES) $(RECORDS) $(BIN)/pixel-llm
	$(BIN)/pixel-llm train --config configs/demo.py --workdir $(RUN)
	$(BIN)/pixel-llm evaluate --workdir $(RUN)

# The same for all capabilities; an hour.
demo-joint: RUN := runs/demo_joint
demo-joint: $(VENV)/.metrics
	$(BIN)/pixel-llm scenes --out $(SCENES) --seed 0 --train 8000 --val 200
	sh data/scenes.sh $(SCENES) $(RECORDS) $(BIN)/pixel-llm
	for split in train val; do $(BIN)/pixel-llm build jsonl --split $$split \
	  --annotations $(SCENES)/annotations/scenes_$${split}_expressions.jsonl \
	  --images $(SCENES)/images/$$split --out $(RECORDS)/expressions \
	  || exit; done
	$(BIN)/pixel-llm train --config configs/demo_joint.py --workdir $(RUN)
	$(BIN)/pixel-llm evaluate --workdir $(RUN)

test: $(VENV)/.installed
	$(BIN)/python -m pytest tests -m 'not slow' -n 2 --dist loadfile

# The tests that compare with other projects' packages, or run on them.
parity: $(PARITY_VENV)/.installed
	$(PARITY_VENV)/bin/python -m pytest -m parity \
	  $$(grep -rlF pytest.mark.parity --include='*_test.py' tests)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/shellcheck launch/*.sh data/*.sh .ci/run

types: $(VENV)/.installed
	$(BIN)/pyright

# The lock of this platform where there is one, else the ranges of pyproject.
PLATFORM := $(shell uname -s | tr A-Z a-z)-$(shell uname -m)
LOCK := $(wildcard requirements/$(PLATFORM).txt)

$(VENV)/.installed: pyproject.toml $(LOCK)
	$(PYTHON) -c 'import sys; v = sys.version_info; \
	  sys.exit(v < (3, 11) and f"Python >= 3.11 is needed, found {v[0]}.{v[1]}")'
	$(PYTHON) -m venv $(VENV)
	$(if $(LOCK),$(BIN)/pip install --quiet --require-hashes -r $(LOCK))
	$(BIN)/pip install --quiet $(if $(LOCK),--no-deps --no-build-isolation) \
	  -e '.[data,dev]'
	touch $@

# METEOR's data.
$(VENV)/.metrics: $(VENV)/.installed
	$(BIN)/pip install --quiet --no-build-isolation -e '.[metrics]'
	touch $@

# The registry's wheels: what runs on the CPU is enough.
$(PARITY_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(PARITY_VENV)
	$(PARITY_VENV)/bin/pip install --quiet -e '.[data,dev,parity]'
	touch $@

clean:
	rm -rf $(VENV) $(PARITY_VENV) runs build dist *.egg-info

# Exact versions with hashes, without addresses.
lock:
	for p in 'linux-x86_64 x86_64-manylinux_2_28' \
	    'linux-aarch64 aarch64-manylinux_2_28' \
	    'darwin-arm64 aarch64-apple-darwin'; do \
	  set -- $$p; \
	  uv pip compile --quiet pyproject.toml --extra data --extra dev \
	    --python-version 3.11 --python-platform $$2 --generate-hashes \
	    --no-emit-index-url --no-annotate \
	    --custom-compile-command 'make lock' \
	    --output-file requirements/$$1.txt || exit 1; \
	done
