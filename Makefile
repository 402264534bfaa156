# `make help` lists every target.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Kafka for `make demo`: HOST:PORT. Without it the demo runs on the embedded log.
BROKERS ?=
CARGO ?= cargo
# The tests of the contract mostly wait: for sessions to run out, for lanes to be parked. So more of them than cores at once.
CONTRACT = $(CARGO) test --locked --package bluebox-e2e -- --test-threads=6
# Mistakes that are planted into the state machines, and must be found by the simulation or the model. With the same packages as the other tests, so that what they are made of is built once.
PLANTED = $(CARGO) test --locked --workspace --exclude bluebox-e2e --features bluebox/faults,bluebox-txmgr/faults --test simulation --test model planted

# How long the parts of `make e2e` take.
E2E_TIMES = target/e2e.times
TIMED = scripts/timed $(E2E_TIMES)
# More flags for the node of `make e2e`: NODE=--without-restart-rules
NODE ?=

# How many SIGKILLs `make faults` makes on each log, and on which; more flags for it.
KILLS ?= 30
LOGS ?= embedded,kafka,kafka-3
FAULTS ?=
# How many SIGKILLs and transactions `make txn-faults` makes on each log, and on which; more flags for it.
TXN_KILLS ?= 20
TRANSACTIONS ?= 500
TXN_LOGS ?= embedded,kafka
TXN_FAULTS ?=
# What `make test` has of it: a fixed set on the embedded log and on a Kafka of its own, which takes about a minute.
FAULTS_BINARY = "$${CARGO_TARGET_DIR:-target}/debug/bluebox-faults"
SOME_FAULTS = $(FAULTS_BINARY) --seed 1 --without log-down

# How much `make bench` measures: rounds, calls of each kind in one, and how long load is made in one. BENCH has more flags: `target/release/bluebox-bench --help`.
ROUNDS ?= 9
CALLS ?= 300
LOAD_TIME ?= 2s
BENCH ?=
BENCH_BINARY = "$${CARGO_TARGET_DIR:-target}/release/bluebox-bench"
SOME_BENCH = $(BENCH_BINARY) --rounds $(ROUNDS) --calls $(CALLS) --time $(LOAD_TIME) $(BENCH)

# What was not tested, because something is missing on this machine.
LEFT_OUT = $(CURDIR)/target/left-out

.PHONY: help build release bench bench-all bench-growth bench-observe bench-plot bench-build demo demo-kafka test test-fast faults txn-faults faults-build faults-some fmt fmt-check lint doc deny kafka kafka-stop test-redirect test-kubernetes e2e e2e-images images clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Build everything, quickly (target/debug/bluebox)
	$(CARGO) build --locked --workspace

release: ## Build for production (target/release/bluebox)
	$(CARGO) build --locked --release --bin bluebox

demo: ## A shop of unchanged apps, two kills, and a ledger; on Kafka with BROKERS=host:port
	$(CARGO) build --locked --bin bluebox
	scripts/demo --bluebox "$${CARGO_TARGET_DIR:-target}/debug/bluebox" $(if $(BROKERS),--brokers $(BROKERS))

demo-kafka: ## The demo on a Kafka that is started for it
	scripts/kafka run -- bash -c '$(MAKE) demo BROKERS="$$BLUEBOX_TEST_BROKERS"'

test: fmt-check lint doc ## Formatting, lints, the links in comments, and all tests, on the embedded log and on a real Kafka
	rm -f $(LEFT_OUT)
	BLUEBOX_LEFT_OUT=$(LEFT_OUT) scripts/kafka run --secure -- bash -c '$(CARGO) test --locked --workspace --exclude bluebox-e2e && $(CONTRACT)'
	$(PLANTED)
	$(MAKE) faults-some
	@[ ! -s $(LEFT_OUT) ] || { printf '\n*** NOT EVERYTHING WAS TESTED. Left out, because something is missing on this machine:\n'; sort -u $(LEFT_OUT) | sed 's/^/***   /'; }

bench: bench-build ## What a durable call costs, beside the bare broker in the same run (target/bench.json); some minutes after the build; ROUNDS=30 CALLS=1000 for the long set
	scripts/kafka run -- $(SOME_BENCH)

bench-all: bench ## The same, then with three brokers and with the embedded log, and the picture for docs/
	scripts/kafka run --brokers 3 -- $(SOME_BENCH) --only sequential,loads --add-as replication_3
	$(SOME_BENCH) --log embedded --only sequential,loads --add-as embedded
	$(MAKE) bench-plot

bench-observe: bench-build ## What it costs to be looked at: metrics read, traces sent; ten rounds that take turns
	scripts/kafka run -- $(BENCH_BINARY) --only observe --rounds 10 --time 5s --output target/bench-observe.json

bench-growth: bench-build ## What 1 to 1,000 components and 1 to 50 replicas cost; takes long
	scripts/kafka run -- $(SOME_BENCH) --only growth --output target/bench-growth.json

bench-plot: ## Draw target/bench.json as docs/performance.svg
	$(BENCH_BINARY) plot

bench-build:
	$(CARGO) build --locked --release --bin bluebox --bin bluebox-bench

faults: faults-build ## Injure a running system and check that nothing accepted is lost, on all logs; KILLS=1000 for the long set, LOGS=kafka, FAULTS="--seed 7"
	$(FAULTS_BINARY) --log $(LOGS) --kills $(KILLS) $(FAULTS)

txn-faults: faults-build ## Kill the transaction manager, participants, proxies and the log, and judge how every transaction ended (target/txn-faults.json); TXN_KILLS=300 TRANSACTIONS=10000 for the long set
	$(FAULTS_BINARY) transactions --log $(TXN_LOGS) --kills $(TXN_KILLS) --transactions $(TRANSACTIONS) $(TXN_FAULTS)

faults-some: faults-build
	$(FAULTS_BINARY) transactions --seed 1 --log embedded --kills 8 --transactions 150
	$(SOME_FAULTS) --log embedded --kills 10
	$(SOME_FAULTS) --log kafka --kills 5 --only kill-caller-proxy,kill-callee-app,kill-callee-proxy,kill-log,stop-callee-proxy,cut,half-open

faults-build:
	$(CARGO) build --locked --bin bluebox --bin bluebox-faults --bin bluebox-e2e-app

test-fast: ## The tests that need no Kafka
	$(CARGO) test --locked --workspace --exclude bluebox-e2e
	$(CONTRACT)
	$(PLANTED)

test-redirect: ## The redirect, with real clients in network namespaces; as root (part of `make test`, which says so where it can't run)
	$(CARGO) test --locked --package bluebox-e2e --test redirect -- --nocapture

test-kubernetes: ## The webhook, the policy, and what an installer types, on a real API server; builds Kubernetes first (10 minutes of CPU time, once)
	scripts/kubernetes build
	$(CARGO) build --locked --package bluebox
	$(CARGO) test --locked --package bluebox-e2e --test kubernetes --test install --no-run
	scripts/kubernetes run -- $(CARGO) test --locked --package bluebox-e2e --test kubernetes -- --nocapture
	scripts/kubernetes run -- $(CARGO) test --locked --package bluebox-e2e --test install -- --nocapture

images: ## The images of Bluebox, as archives: target/images/bluebox.tar and bluebox-injector.tar
	scripts/images programs
	scripts/images bluebox

# The app and busybox know nothing of Bluebox.
e2e-images: ## All images of `make e2e`, as archives in target/images, for a cluster of your own
	$(TIMED) "install packages" scripts/kubernetes packages
	$(TIMED) "images of Bluebox" $(MAKE) images
	$(TIMED) "image of the tests' app" scripts/images app bluebox-test/app:1 target/images/app.tar
	$(TIMED) "image of busybox" scripts/images busybox bluebox-test/busybox:1 target/images/busybox.tar '["/bin/busybox", "sh"]'
	$(TIMED) "image of Kafka" scripts/images kafka target/images/kafka.tar

e2e: ## Real pods on a real Kubernetes node on this machine (as root), or on the cluster that E2E_KUBECONFIG names (docs/kubernetes.md); writes target/e2e.json
	rm -f $(E2E_TIMES)
ifndef E2E_KUBECONFIG
	$(TIMED) "build Kubernetes" scripts/kubernetes build
	$(MAKE) e2e-images
endif
	$(TIMED) "build bluebox" $(CARGO) build --locked --package bluebox
	$(TIMED) "build the tests" $(CARGO) test --locked --package bluebox-e2e --test pods --no-run
	$(TIMED) "cluster and checks" $(if $(E2E_KUBECONFIG),,scripts/kubernetes run --node $(NODE) --) $(CARGO) test --locked --offline --package bluebox-e2e --test pods -- --nocapture

fmt: ## Format the code
	$(CARGO) fmt --all

fmt-check: ## Whether the code is formatted
	$(CARGO) fmt --all --check

lint: ## Clippy; a warning is an error
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) clippy --locked --workspace --all-targets --features bluebox/faults,bluebox-txmgr/faults -- -D warnings

doc: ## The documentation of the crates; a broken link is an error
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" $(CARGO) doc --locked --workspace --no-deps --document-private-items

deny: ## Licences, advisories and sources of all dependencies (needs cargo-deny and the network)
	$(CARGO) deny --workspace check

kafka: ## Start a Kafka for yourself and print its address
	scripts/kafka start

kafka-stop: ## Stop it
	scripts/kafka stop

clean: ## Remove everything that was built
	$(CARGO) clean
