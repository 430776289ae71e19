# SPDX-License-Identifier: GPL-3.0-or-later
# The one front door. `make help` lists what there is, what each target needs and how long it takes.
SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

export PYTHONPATH := $(CURDIR)/native/build:$(CURDIR)/tests/testbed:$(CURDIR)/tests:$(CURDIR)/native/common/python:$(CURDIR)/build/collections
export PATH := $(CURDIR)/build/venv/bin:$(PATH)
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
PY := build/venv/bin/python
TESTBED ?= demo
export FLEXAI_TESTBED := $(TESTBED)

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: venv
venv: ## Python environment in build/venv [needs Python 3.11-3.13; 2 min once]
	@sh native/build/bootstrap.sh

.PHONY: collection
collection: venv ## this checkout as flexai.xpu under build/collections, for work on it [1 s]
	@mkdir -p build/collections/ansible_collections/flexai
	@ln -sfn ../../../.. build/collections/ansible_collections/flexai/xpu

.PHONY: artefacts
artefacts: venv ## what the demo installs, with its manifest, in build/artefacts [root; 15 min once, then seconds]
	@$(PY) -m testbed.artefacts --out build/artefacts

.PHONY: dist
dist: venv ## collection tarball and native artefacts with their digests in build/dist [10 min once]
	@$(PY) -m xpubuild dist --out build/dist

.PHONY: volcano
volcano: venv ## Volcano and huawei-xpu from a source tree, in build/volcano; VOLCANO_SRC=/path [5 min]
	@test -n "$(VOLCANO_SRC)" || { echo "give Volcano's sources: make volcano VOLCANO_SRC=/path/to/volcano" >&2; exit 1; }
	@$(PY) -m xpubuild volcano-source --tree "$(VOLCANO_SRC)" --out build/volcano

.PHONY: demo demo-status demo-down
demo: collection ## the main job, from bare hosts to a pod on a 20 % slice and a model over two pods; SUBNET=10.1.2.0/24 [root; 28 min once, then 5 min]
	@$(PY) -m e2e.demo up --name $(TESTBED) $(if $(SUBNET),--subnet $(SUBNET))
demo-status: collection ## hosts, nodes, slices, the monitor's lines and the serving group of the demo [20 s]
	@$(PY) -m e2e.demo status --name $(TESTBED)
demo-down: venv ## remove the demo; leaves nothing behind [20 s]
	@$(PY) -m testbed down --name $(TESTBED)

.PHONY: test test-sanity test-unit test-native test-syshax test-group test-integration test-e2e test-soak
# Tests import the collection under its full name.
test test-sanity test-unit test-native test-syshax test-group test-integration test-e2e test-soak: collection
test: venv ## everything CI runs; ends with minutes per area [root; 20 min, 25 min more when nothing is built]
	@$(PY) tests/run.py all
test-sanity: venv ## lint, ansible-test sanity, galaxy-importer, REUSE, types [3 min]
	@$(PY) tests/run.py sanity
test-unit: venv ## pure logic: plans, verdicts, build tools, reports [1 min]
	@$(PY) tests/run.py unit
test-native: venv ## Go, C++, the simulated GPU, slices on it under faults and sanitizers [5 min]
	@$(PY) tests/run.py native
test-group: venv ## the supervisor of a serving group: real processes that die, hang and are cut off [root; 80 s]
	@$(PY) tests/run.py group
test-syshax: venv ## the sysHAX conductor: its exchange cut at every byte, two real vLLM servers [2 min; once 3 GB, 3 min]
	@$(PY) tests/run.py syshax
test-integration: venv ## the testbed, roles and installers on real systemd hosts [root; 5 min]
	@$(PY) tests/run.py integration
test-e2e: venv ## the main job on the demo testbed, twice, with snapshots; Molecule; a drained upgrade [root; 7 min]
	@$(PY) tests/run.py e2e
test-soak: venv ## the long forms: full Molecule sequences, reboots [root; 30 min]
	@$(PY) tests/run.py soak

.PHONY: clean-room
clean-room: venv ## the README's two commands on a bare system with git, make and Python [root; 60 min; SUITE=noble CACHES=machine RUN="make demo"]
	@$(PY) tests/cleanroom.py --suite $(or $(SUITE),bookworm) --caches $(or $(CACHES),own) $(if $(RUN),"$(RUN)")

.PHONY: bench bench-testbed bench-site bench-launch bench-share bench-memory bench-init
bench: bench-testbed bench-launch bench-memory bench-init bench-exporter bench-share bench-site ## every benchmark; reports in build/bench
bench-launch: venv ## what the CUDA slice adds to a launch [root; 20 s; ROUNDS=60 BASELINE=other.so DEVICE=real]
	@$(PY) -m bench.launch
bench-share: venv ## accuracy of shares, per shape and tenants [root; 20 min; SHAPES="mid tenants" SHARES="30" SECONDS=60 CARDS=4]
	@$(PY) -m bench.share
bench-memory: venv ## is the memory quota exact, what does it cost [root; 20 s; ROUNDS=60 DEVICE=real]
	@$(PY) -m bench.memory
bench-init: venv ## CPU the CUDA slice adds to a start, 1 to 300 at once [root; 1 min; STARTS="1 300" REPEAT=5]
	@$(PY) -m bench.init
bench-testbed: venv ## seconds until three nodes with Kubernetes are up, everything built before [root; 2 min; ROUNDS=3]
	@$(PY) -m bench.testbed_up
bench-site: venv collection ## cost of a second run of site.yml at 10, 100, 1000 hosts, and at ten by SSH [root for SSH; 14 min; HOSTS="10 100" FLEET=local|ssh|testbed]
	@$(PY) -m bench.site

.PHONY: bench-allocate
bench-allocate: venv collection ## what the kubelet waits for when 100 mixed pods ask at once [root; 12 min; PODS=100 ROUNDS=1 FLOOR=50]
	@$(PY) -m bench.allocate
.PHONY: bench-scheduler
bench-scheduler: venv ## what huawei-xpu costs Volcano a decision, a random week of each policy, 200 kwok nodes [root; 12 min; NODES=1000 PODS=5000 ROUNDS=3 FAKE_NODES=200]
	@$(PY) -m bench.scheduler

.PHONY: bench-exporter
bench-exporter: venv ## a scrape of 64 slices: how long, and what it costs the node [root; 1 min; SCRAPES=20]
	@$(PY) -m bench.exporter

.PHONY: bench-conductor bench-failover bench-cpu-plan
bench-conductor: venv ## cost of the conductor beside a bare pass-through; another router too [4 min, 6 with one; ROUNDS=5 BASELINE=sglang-router|vllm-router BASELINE_URL=]
	@$(PY) -m bench.conductor
bench-failover: venv ## 10,000 requests while engines die at random [1 min; REQUESTS=10000]
	@$(PY) -m bench.failover
bench-cpu-plan: venv collection ## 1,000 NUMA plans of machines of every shape [5 s]
	@$(PY) -m bench.cpu_plan

.PHONY: bench-render
bench-render: venv collection ## 1,000 inference services as native objects, twice the same bytes [15 s]
	@$(PY) -m bench.render
.PHONY: bench-apply
bench-apply: venv collection ## 100 unchanged inference services in one execution, against a testbed's API server [root; 2 min; ROUNDS=5]
	@$(PY) -m bench.apply_services
.PHONY: bench-webhook
bench-webhook: venv ## what the admission webhook adds to a pod's creation, beside a bare HTTPS echo [1 min; ROUNDS=5 REQUESTS=4000 WORKERS=4]
	@$(PY) -m bench.webhook

.PHONY: bench-recovery
bench-recovery: venv ## how long a serving group is away after kill -9 of any of its processes, stub engine [root; 7 min; ROUNDS=5]
	@$(PY) -m bench.recovery

.PHONY: docs
docs: collection ## pages of every role and plugin in build/docs [1 min]
	@$(PY) -m xpubuild docs --out build/docs

.PHONY: requirements
requirements: ## pin requirements/*.in again [needs uv]
	uv pip compile -q --universal --python-version 3.11 --generate-hashes requirements/dev.in -o requirements/dev.txt
	uv pip compile -q --universal --python-version 3.11 --generate-hashes requirements/collection.in -c requirements/dev.txt -o requirements/collection.txt
