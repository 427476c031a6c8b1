# Penstock: everything a person types. `make` alone says what there is.
# On Debian and Ubuntu each target first installs what it lacks (tests/scripts/setup.sh says what, before it does).

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help build demo test lint fuzz soak bench setup setup-test

CARGO ?= cargo
# Seconds for each fuzz target: enough to find what a change broke; an hour or a night finds more (make fuzz FUZZ_SECONDS=3600).
FUZZ_SECONDS ?= 60
# Seconds of the soak.
SOAK_SECONDS ?= 60
# Arguments for `penstock demo` or the benches, such as ARGS=--exit.
ARGS ?=
# rustup puts cargo there; a shell that was open before does not know.
export PATH := $(PATH):$(HOME)/.cargo/bin

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  ARGS=... goes to the demo or the benches: make demo ARGS=--exit"
	@echo "  FUZZ_SECONDS=60 is the time of each fuzz target, SOAK_SECONDS=60 that of the soak"

build: setup ## the penstock binary, optimised: target/release/penstock
	$(CARGO) build --locked --release -p penstock-agent
	@echo "built target/release/penstock; try: sudo target/release/penstock demo"

demo: setup ## a real image, served by a registry in the process, mounted and read before it is there
	$(CARGO) build --locked --profile ci -p penstock-agent
	@tests/scripts/demo.sh "$${CARGO_TARGET_DIR:-target}/ci/penstock" $(ARGS)

test: setup-test ## everything CI checks: lints, docs, every test, fuzzing; says what was skipped and why
	@FUZZ_SECONDS=$(FUZZ_SECONDS) CARGO=$(CARGO) tests/scripts/test.sh

lint: setup ## formatting, clippy, docs
	@CARGO=$(CARGO) tests/scripts/test.sh lint

fuzz: setup-test ## every fuzz target for FUZZ_SECONDS
	@FUZZ_SECONDS=$(FUZZ_SECONDS) CARGO=$(CARGO) tests/scripts/test.sh fuzz

soak: setup-test ## random readers while everything fails, for SOAK_SECONDS; prints figures
	@SOAK_SECONDS=$(SOAK_SECONDS) $(CARGO) test --locked -p penstock-tests --test soak -- --nocapture

bench: setup-test ## measure reads, starts and lookups: tables here, JSON in benches/results
	$(CARGO) run --locked --profile ci -p penstock-benches -- $(ARGS)
	$(CARGO) bench --locked --profile ci -p penstock-benches

setup:
	@tests/scripts/setup.sh build

setup-test:
	@tests/scripts/setup.sh build test
