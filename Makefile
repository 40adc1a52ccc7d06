# Two commands for a newcomer: `make demo` and `make test`. Each sets up what it needs.
# `make demo TASK=retrieval` (or nlvr, grounding, vqa, captioning) fine-tunes the pre-trained demo model, and pre-trains it first where needed.
# `make demo QUICK=1` shows in two minutes that the model learns.
PYTHON ?= python3
TASK ?= pretrain
SEED ?= 0
ifneq ($(filter demo,$(MAKECMDGOALS)),)
TASKS := $(shell $(PYTHON) -c "from tasks import TASKS; print(*TASKS)")
ifeq ($(filter $(filter-out video_qa,$(TASKS)),$(TASK)),)
$(error TASK=$(TASK) is no task of the demo; use one of $(filter-out video_qa,$(TASKS)))
endif
endif
PRETRAINED := runs/demo/pretrain-seed0
RUN := runs/demo/$(TASK)-seed$(SEED)

.PHONY: demo demo-quick scenes clips test lint types setup setup-dev clean-demo

ifdef QUICK
demo: demo-quick
else
demo: scenes $(if $(filter-out pretrain,$(TASK)),$(PRETRAINED)/evaluation.json)
	.venv/bin/python run.py --task $(TASK) --cpu $(if $(filter pretrain,$(TASK)),2,1) --output $(RUN) --resume seed=$(SEED)
	@echo
	@echo "Look at $(RUN)/predictions.png, and at the losses with: .venv/bin/tensorboard --logdir $(RUN)"
	@echo "Next: make demo TASK=retrieval (nlvr, grounding, vqa, captioning), or your own data: docs/own_data.md"
endif

demo-quick: .venv/installed
	.venv/bin/python -m demo.scenes --out data/scenes_quick --seed 0 --train 1500 --val 100 --test 100
	.venv/bin/python run.py --config configs/demo/pretrain_quick.yaml --cpu 2 --output runs/demo/pretrain_quick --resume
	@echo
	@echo "That was a tenth of the demo's steps: texts and scenes begin to find each other, matching and boxes come later."
	@echo "Next: make demo, which takes ten to twelve minutes; or your own data: docs/own_data.md"

$(PRETRAINED)/evaluation.json: | scenes
	.venv/bin/python run.py --task pretrain --cpu 2 --output $(PRETRAINED) --resume

scenes: .venv/installed
	.venv/bin/python -m demo.scenes --out data/scenes --seed 0

clips: scenes
	.venv/bin/python -m demo.clips --out data/clips --seed 0

test: .venv/installed-dev
	.venv/bin/python -m pytest -n auto --dist loadscope

lint: .venv/installed-dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: .venv/installed-dev
	.venv/bin/mypy

setup: .venv/installed
setup-dev: .venv/installed-dev

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: requirements.txt | .venv/bin/python
	.venv/bin/python -m pip install -r requirements.txt
	touch $@

.venv/installed-dev: requirements.txt requirements-dev.txt | .venv/bin/python
	.venv/bin/python -m pip install -r requirements-dev.txt
	touch .venv/installed $@

clean-demo:
	rm -rf runs/demo data/scenes data/scenes_quick data/clips
