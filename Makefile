# make record   set up, build the embedded corpus, train and score the reference model, pack and
#               check the record, regenerate the boards
# make audit    run the referee on that record, LEVEL=quick or full
# make test     set up and run the tests
# Options: SEEDS="1337 42 2025"   NAME="My idea"   SLUG=my-idea   AUTHOR="..."   GITHUB_ID=...
#          BLURB="..."   BASE=2026-11-30_ema-ngram   PYTHON=python3.12

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
SEEDS ?= 1337
NAME ?= EMA + exact n-gram mixing
SLUG ?= ema-ngram
BLURB ?= Reference model at laptop size; exact causal n-gram counts mixed in by a Bayesian gate
LEVEL ?= quick
# By the shell, when the folder is there: make expands a whole recipe before its first line runs
NEWEST = record=$$(ls -d records/track_docs_cpu/*_$(SLUG) | tail -1)
DATA := data/datasets/docs_sp1024
BIN := .venv/bin

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

# The docs_cpu batch has 32 rows: a power of two of at most 32 ranks.
record: data
	@gpus=$$($(BIN)/python -c 'import torch; n = torch.cuda.device_count(); print(min(32, 1 << n.bit_length() - 1) if n else 0)'); \
	if [ "$$gpus" -gt 0 ]; then launch="$(BIN)/torchrun --standalone --nproc_per_node=$$gpus"; else launch="$(BIN)/python"; fi; \
	for seed in $(SEEDS); do \
	  $$launch train_gpt.py --preset docs_cpu --seed $$seed --data-dir $(DATA) --out runs/$(SLUG)_seed$$seed; \
	done
	$(BIN)/python -m eval pack $(foreach seed,$(SEEDS),runs/$(SLUG)_seed$(seed)/train.log) --name "$(NAME)" --slug $(SLUG) --track track_docs_cpu --replace \
	  --blurb "$(BLURB)" $(if $(AUTHOR),--author "$(AUTHOR)") $(if $(GITHUB_ID),--github-id $(GITHUB_ID)) $(if $(BASE),--base $(BASE))
	@$(NEWEST); $(BIN)/python -m eval check "$$record"; $(BIN)/python -m eval board; \
	echo "record: $$record (README.md; records/index.html shows it on the board). Next: make audit SLUG=$(SLUG)"

# The verdict becomes part of the record and of the boards.
audit: data
	@$(NEWEST); $(BIN)/python -m eval audit "$$record" --$(LEVEL) || verdict=$$?; \
	$(BIN)/python -m eval pack --refresh "$$record"; $(BIN)/python -m eval board; exit $${verdict:-0}

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile
