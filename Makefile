# `make help` lists every target.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Kafka for `make demo`: HOST:PORT. Without it the demo runs on the embedded log.
BROKERS ?=
CARGO ?= cargo
# The tests of the contract mostly wait: for sessions to run out, for lanes to be parked. So more of them than cores at once.
CONTRACT = $(CARGO) test --locked --package bluebox-e2e -- --test-threads=6

.PHONY: help build release demo demo-kafka test test-fast fmt fmt-check lint doc deny kafka kafka-stop clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Build everything, quickly (target/debug/bluebox)
	$(CARGO) build --locked --workspace

release: ## Build for production (target/release/bluebox)
	$(CARGO) build --locked --release --bin bluebox

demo: ## A shop of unchanged apps, two kills, and a ledger; on Kafka with BROKERS=host:port
	$(CARGO) build --locked --bin bluebox
	scripts/demo --bluebox "$${CARGO_TARGET_DIR:-target}/debug/bluebox" $(if $(BROKERS),--brokers $(BROKERS))

demo-kafka: ## The demo on a Kafka that is started for it
	scripts/kafka run -- bash -c '$(MAKE) demo BROKERS="$$BLUEBOX_TEST_BROKERS"'

test: fmt-check lint ## Formatting, lints and all tests, on the embedded log and on a real Kafka
	scripts/kafka run -- bash -c '$(CARGO) test --locked --workspace --exclude bluebox-e2e && $(CONTRACT)'

test-fast: ## The tests that need no Kafka
	$(CARGO) test --locked --workspace --exclude bluebox-e2e
	$(CONTRACT)

fmt: ## Format the code
	$(CARGO) fmt --all

fmt-check: ## Whether the code is formatted
	$(CARGO) fmt --all --check

lint: ## Clippy; a warning is an error
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

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
