# Two commands for a newcomer: `make demo` and `make test`. Each sets up what it needs.
PYTHON ?= python3
TASK ?= pretrain
SEED ?= 0
RUN := runs/demo/$(TASK)

.PHONY: demo test lint types setup setup-dev clean-demo

demo: .venv/installed | data/scenes/scenes.json
	.venv/bin/python run.py --task $(TASK) --cpu 1 --output $(RUN)-seed$(SEED) --resume seed=$(SEED)

test: .venv/installed-dev
	.venv/bin/python -m pytest

lint: .venv/installed-dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: .venv/installed-dev
	.venv/bin/mypy

setup: .venv/installed
setup-dev: .venv/installed-dev

data/scenes/scenes.json: | .venv/installed
	.venv/bin/python -m dataset.scenes --out data/scenes --seed 0

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: requirements.txt | .venv/bin/python
	.venv/bin/python -m pip install -r requirements.txt
	touch $@

.venv/installed-dev: requirements.txt requirements-dev.txt | .venv/bin/python
	.venv/bin/python -m pip install -r requirements-dev.txt
	touch .venv/installed $@

clean-demo:
	rm -rf runs/demo data/scenes
