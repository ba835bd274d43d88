# `make` alone lists the targets. Debian packages that a target needs are installed by tools/deps.sh, which says what and why.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# The version that programs report: the tag or commit of a checkout.
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
GOBUILD := CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)'
# Plugins are the directories of plugins/ that hold a program.
PLUGINS := $(notdir $(patsubst %/main.go,%,$(wildcard plugins/*/main.go)))
PROGRAMS := bin/virtplug $(PLUGINS:%=bin/virtplug-plugin-%)

GOLANGCI_VERSION := 2.15.0
GOVULNCHECK_VERSION := 1.9.0
TOOLS := $(CURDIR)/.tools/bin

MACHINE ?= uml
BUS ?=
FUZZTIME ?= 10s
BENCHTIME ?= 1s
COUNT ?= 1
PREFIX ?= /usr/local
DESTDIR ?=
COMMA := ,

.PHONY: help
help: ## list the targets
	@echo 'virtplug: virtual machine devices as plugins.  make TARGET'
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo 'Variables: MACHINE=$(MACHINE) FUZZTIME=$(FUZZTIME) BENCHTIME=$(BENCHTIME) PREFIX=$(PREFIX) VERSION=$(VERSION)'

.PHONY: demo
demo: build ## boot Linux whose disk, network and console are plugins; poweroff or Ctrl-A x ends it. MACHINE=uml, kvm or auto
	@MACHINE='$(MACHINE)' BUS='$(BUS)' examples/demo/run

.PHONY: build
build: go ## build bin/virtplug and a program for each plugin
	@for p in $(PROGRAMS); do $(MAKE) build-one PROGRAM=$$p; done

.PHONY: build-one
build-one:
	$(GOBUILD) -o $(PROGRAM) ./$(if $(filter bin/virtplug,$(PROGRAM)),cmd/virtplug,plugins/$(PROGRAM:bin/virtplug-plugin-%=%))

.PHONY: guest
guest: ## build the freestanding guest: needs gcc
	@$(MAKE) -C guest OUT='$(CURDIR)/bin/guest'

.PHONY: guest-module
guest-module: ## build lguest_bus.ko for Linux; KDIR= chooses the kernel's headers
	@$(MAKE) -C guest module OUT='$(CURDIR)/bin/guest' $(if $(KDIR),KDIR='$(KDIR)')

.PHONY: guest-check
guest-check: ## test the headers for kernels of your own, on this host
	@$(MAKE) -C guest check OUT='$(CURDIR)/bin/guest'

# A clear word instead of "command not found".
.PHONY: go
go:
	@command -v go >/dev/null || { echo 'Go is missing: install 1.26 or newer from https://go.dev/dl/' >&2; exit 1; }

.PHONY: test
test: go ## run every level of tests and count them
	@tools/deps.sh guest network machine nested unit race
	@go run ./tools/testlevels $(TESTLEVELS_FLAGS)

.PHONY: test-unit
test-unit: go ## unit tests, ring model, fuzz seeds, conformance: needs only Go
	@go run ./tools/testlevels unit

.PHONY: test-race
test-race: go ## the same under the race detector
	@tools/deps.sh race
	@go run ./tools/testlevels race

.PHONY: test-process
test-process: go ## real plugin and launcher programs: needs only Go
	@go run ./tools/testlevels process

.PHONY: test-guest
test-guest: go ## boot User-Mode Linux with our devices
	@tools/deps.sh guest network
	@go run ./tools/testlevels guest

.PHONY: test-machine
test-machine: go ## boot a freestanding guest on /dev/kvm with our devices
	@tools/deps.sh machine guest
	@go run ./tools/testlevels machine

.PHONY: test-nested
test-nested: go ## boot stock Linux on our KVM machine, inside QEMU: needs no KVM
	@tools/deps.sh nested
	@go run ./tools/testlevels nested

.PHONY: fuzz
fuzz: go ## run every fuzz target for FUZZTIME (10s, or 5000x executions)
	@found=0; \
	while read -r file; do \
		for target in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$$file"); do \
			found=$$((found + 1)); \
			echo "=== $$target in $$(dirname "$$file")"; \
			go test "$$(dirname "$$file")" -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1x; \
		done; \
	done < <(grep -rl --include='*_test.go' '^func Fuzz' ./sdk ./core ./plugins ./cmd); \
	echo "$$found fuzz targets"; [ "$$found" -gt 0 ]

.PHONY: bench
bench: go ## run the benchmarks, with allocations
	@go test -run '^$$' -bench . -benchmem -benchtime $(BENCHTIME) -count $(COUNT) ./sdk/... ./core/... ./plugins/...

.PHONY: bench-net
bench-net: build ## iperf3 in guests on the user and tap networks, beside other programs' in turn; wants an idle machine
	@tools/deps.sh guest bench
	@tools/bench/net

.PHONY: generate
generate: go ## generate the Go code of the plugin contract
	@tools/deps.sh generate
	@tools/generate.sh

.PHONY: lint
lint: golangci-lint ## run the linters of .golangci.yml
	@PATH="$(TOOLS):$$PATH" golangci-lint run ./...

.PHONY: check
check: go golangci-lint ## linters, import rules, generated code, short fuzzing, links, known holes
	@tools/deps.sh generate
	@VERSION=$(GOVULNCHECK_VERSION) TOOLS='$(TOOLS)' tools/check.sh

# golangci-lint of the pinned version: the one in PATH if it is, else one of our own.
.PHONY: golangci-lint
golangci-lint: go
	@if ! PATH="$(TOOLS):$$PATH" golangci-lint version 2>/dev/null | grep -qF 'version $(GOLANGCI_VERSION) '; then \
		echo 'Building golangci-lint $(GOLANGCI_VERSION) into .tools/bin (once, a few minutes)'; \
		GOBIN='$(TOOLS)' GOFLAGS= go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v$(GOLANGCI_VERSION); \
	fi

.PHONY: cover
cover: go ## write tmp/cover.html: what the unit tests run through
	@mkdir -p tmp
	@go test -coverprofile=tmp/cover.out -coverpkg=./sdk/...$(COMMA)./core/...$(COMMA)./plugins/... ./sdk/... ./core/... ./plugins/...
	@go tool cover -html=tmp/cover.out -o tmp/cover.html
	@go tool cover -func=tmp/cover.out | tail -1

.PHONY: install
install: build ## install to PREFIX (default /usr/local): bin/virtplug, lib/virtplug/plugins/
	install -d '$(DESTDIR)$(PREFIX)/bin' '$(DESTDIR)$(PREFIX)/lib/virtplug/plugins'
	install -m 755 bin/virtplug '$(DESTDIR)$(PREFIX)/bin/'
	install -m 755 $(PLUGINS:%=bin/virtplug-plugin-%) '$(DESTDIR)$(PREFIX)/lib/virtplug/plugins/'

.PHONY: clean
clean: ## remove what was built, the demo's disk too
	rm -rf bin tmp .demo .tools
