# make record   set up, build the embedded corpus, train and score the reference model, package and check the record, renew the boards
# make audit    run the referee on that record, LEVEL=quick or full
# make test     set up and run the tests
# Options: SEEDS="1337 42 2025"   NAME="My idea"   SLUG=my-idea   AUTHOR="..."   GITHUB_ID=...   BLURB="..."   PYTHON=python3.12

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
SEEDS ?= 1337
NAME ?= EMA + exact n-gram mixing
SLUG ?= ema-ngram
BLURB ?= Reference model at laptop size; exact causal n-gram counts mixed in by a Bayesian gate
LEVEL ?= quick
RECORD = $(shell ls -d records/track_docs_cpu/*_$(SLUG) | tail -1)
DATA := data/datasets/docs_sp1024
BIN := .venv/bin
GPUS = $(shell (command -v nvidia-smi >/dev/null && nvidia-smi --list-gpus || true) | wc -l)

.PHONY: record audit test data setup

setup: .venv/installed

# The stamp is the whole state: a second run installs nothing, a changed pin installs again.
.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "error: expected Python >= 3.11, found " + sys.version.split()[0] + "; run make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

data: setup
	$(BIN)/python -m data docs

record: data
	@for seed in $(SEEDS); do \
	  if [ "$(GPUS)" -gt 0 ]; then launch="$(BIN)/torchrun --standalone --nproc_per_node=$(GPUS)"; else launch="$(BIN)/python"; fi; \
	  $$launch train_gpt.py --preset docs_cpu --seed $$seed --data-dir $(DATA) --out runs/$(SLUG)_seed$$seed; \
	done
	$(BIN)/python -m eval pack $(foreach seed,$(SEEDS),runs/$(SLUG)_seed$(seed)/train.log) --name "$(NAME)" --slug $(SLUG) --track track_docs_cpu --replace \
	  --blurb "$(BLURB)" $(if $(AUTHOR),--author "$(AUTHOR)") $(if $(GITHUB_ID),--github-id $(GITHUB_ID))
	$(BIN)/python -m eval check $(RECORD)
	$(BIN)/python -m eval board
	@echo "record: $(RECORD) (README.md; records/index.html shows it on the board). Next: make audit$(if $(filter-out ema-ngram,$(SLUG)), SLUG=$(SLUG))"

# The verdict becomes part of the record and of the boards.
audit: data
	$(BIN)/python -m eval audit $(RECORD) --$(LEVEL)
	$(BIN)/python -m eval pack --refresh $(RECORD)
	$(BIN)/python -m eval board

test: setup
	$(BIN)/python -m pytest -q
