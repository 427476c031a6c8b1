# Penstock: everything a person types. `make` alone says what there is.
# On Debian and Ubuntu each target first installs what it lacks (tests/scripts/setup.sh says what, before it does).

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help build deb image site demo test lint fuzz soak bench bench-ab setup setup-test setup-package

CARGO ?= cargo
# Seconds for each fuzz target: enough to find what a change broke; an hour or a night finds more (make fuzz FUZZ_SECONDS=3600).
FUZZ_SECONDS ?= 20
# Seconds of the soak.
SOAK_SECONDS ?= 30
# Arguments for `penstock demo` or the benches, such as ARGS=--exit.
ARGS ?=
# Name of the container image.
IMAGE ?= localhost/penstock:latest
# rustup puts cargo there; a shell that was open before does not know.
export PATH := $(PATH):$(HOME)/.cargo/bin

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  ARGS=... goes to the demo or the benches: make demo ARGS=--exit"
	@echo "  FUZZ_SECONDS=20 is the time of each fuzz target, SOAK_SECONDS=30 that of the soak"

build: setup ## the penstock binary, optimised: target/release/penstock
	$(CARGO) build --locked --release -p penstock-agent
	@echo "built target/release/penstock; try: sudo target/release/penstock demo"

deb: setup-package ## a package for Debian and Ubuntu, in target/
	$(CARGO) build --locked --release -p penstock-agent
	@packaging/deb.sh "$${CARGO_TARGET_DIR:-target}" "$${CARGO_TARGET_DIR:-target}/release/penstock"

image: setup-package ## a container image from scratch, by buildah: make image IMAGE=registry.example.com/penstock:0.1.0
	$(CARGO) build --locked --release -p penstock-agent
	@packaging/image.sh $(IMAGE) "$${CARGO_TARGET_DIR:-target}/release/penstock"

site: setup ## the documents as a site, in target/site; installs mdbook through cargo where it is missing
	@command -v mdbook >/dev/null || $(CARGO) install --locked --version 0.5.4 mdbook
	@packaging/site.sh "$${CARGO_TARGET_DIR:-target}/site"

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

bench: setup-test ## measure what is promised (path start crowd attach cold warm-start warm many vm): tables, each promise met or missed; JSON in benches/results
	$(CARGO) bench --locked --profile ci -p penstock-benches
	$(CARGO) run --locked --profile ci -p penstock-benches -- $(ARGS)

bench-ab: setup-test ## is this tree slower than another commit? make bench-ab BASE=HEAD~1; ROUNDS, LIMIT, WHAT and ARGS as tests/scripts/bench-ab.sh says
	@CARGO=$(CARGO) BASE="$(BASE)" ARGS="$(ARGS)" tests/scripts/bench-ab.sh

setup:
	@tests/scripts/setup.sh build

setup-package:
	@tests/scripts/setup.sh build package

setup-test:
	@tests/scripts/setup.sh build test
