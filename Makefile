GO ?= go
GOBIN := $(CURDIR)/.cache/bin
GOFMT = "$$($(GO) env GOROOT)/bin/gofmt"

# What `make run` uses. Its log is short so that the text before it can be read.
DATA ?= ./data
MNT ?= ./mnt
UP_FLAGS ?= --log-level warn

# RACE=1 tests with the race detector, which needs a C compiler. PKG and TESTFLAGS choose what is tested and how.
RACE ?=
PKG ?= ./...
TESTFLAGS ?=
FUZZTIME ?= 60s
BENCH ?= .

# How long make robustness goes on, with how many metaservers, and with which choices: SEED= takes others every time.
DURATION ?= 30m
METASERVERS ?= 3
SEED ?=

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.PHONY: build
build: ## build ./shoal
	$(GO) build -o shoal ./cmd/shoal

.PHONY: run
run: build ## run a cluster with its data in ./data, mounted at ./mnt, until interrupted
	@if [ ! -e /dev/fuse ]; then \
		echo "This system has no /dev/fuse, so nothing can be mounted: load the module (modprobe fuse), or give the container the device."; \
		echo "Without a mount:  ./shoal up --data $(DATA)"; exit 1; \
	elif [ ! -r /dev/fuse ] || [ ! -w /dev/fuse ]; then \
		echo "You may not use /dev/fuse, which is $$(stat -c '%A %U:%G' /dev/fuse); on most systems everybody may (crw-rw-rw-). To allow it:"; \
		echo "    sudo chmod 666 /dev/fuse"; \
		echo "Without a mount:  ./shoal up --data $(DATA)"; exit 1; \
	elif [ "$$(id -u)" != 0 ] && ! command -v fusermount3 >/dev/null; then \
		echo "Mounting as an ordinary user needs fusermount3, which is not there. Install the package fuse3:"; \
		echo "    Debian, Ubuntu:  sudo apt install fuse3"; \
		echo "    Fedora:          sudo dnf install fuse3"; \
		echo "    Arch:            sudo pacman -S fuse3"; \
		echo "Without a mount:  ./shoal up --data $(DATA)"; exit 1; \
	fi
	@echo
	@echo "Starting a cluster. When it says \"ready\", try in another terminal, in this directory:"
	@echo
	@echo "    cp -r \"\$$(go env GOROOT)/src\" $(MNT)/          # it is a directory like any other"
	@echo "    ./shoal cp -r shoal:/src/. out               # the same files without the mount"
	@echo "    diff -r \"\$$(go env GOROOT)/src\" out && echo the same"
	@echo "    ./shoal status                               # and http://127.0.0.1:7480/ in a browser"
	@echo
	@echo "Ctrl-C stops it; \"make run\" again finds everything as it was."
	@echo
	@exec ./shoal up --data $(DATA) --mount $(MNT) $(UP_FLAGS)

.PHONY: test
test: ## vet and test all packages; needs only Go (what needs FUSE or root is skipped where they are missing)
	$(GO) vet $(PKG)
	$(GO) test $(if $(RACE),-race) -timeout 20m $(TESTFLAGS) $(PKG)

.PHONY: race
race: ## the same with the race detector (needs a C compiler)
	$(MAKE) test RACE=1

.PHONY: robustness
robustness: ## as root: break a cluster under load for DURATION (30m); what clients were told must be linearizable (docs/testing.md)
	SHOAL_ROBUSTNESS=$(DURATION) SHOAL_METASERVERS=$(METASERVERS) SHOAL_SEED=$(SEED) \
		$(GO) test $(if $(RACE),-race) -count=1 -timeout 0 -v -run '^TestRobustness$$' ./test/robust

.PHONY: lint
lint: ## check format, vet, staticcheck, and that proto/ is current
	@bad=$$($(GO) list -f '{{.Dir}}' ./... | xargs $(GOFMT) -l); \
	if [ -n "$$bad" ]; then echo "not formatted (gofmt -w):"; echo "$$bad"; exit 1; fi
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	@bash .ci/proto-current

.PHONY: proto
proto: ## regenerate proto/ (needs protoc: Debian's protobuf-compiler)
	mkdir -p $(GOBIN)
	GOBIN=$(GOBIN) $(GO) install tool
	PATH="$(GOBIN):$$PATH" protoc -I proto --go_out=proto --go_opt=paths=source_relative \
		--go-grpc_out=proto --go-grpc_opt=paths=source_relative proto/shoalpb/*.proto

.PHONY: fuzz
fuzz: ## run every fuzz test for FUZZTIME (60s), two at a time
	FUZZTIME=$(FUZZTIME) GO="$(GO)" bash .ci/fuzz

.PHONY: bench
bench: ## run the Go benchmarks; BENCH=regexp chooses
	$(GO) test -run '^$$' -bench '$(BENCH)' -benchmem $(PKG)

.PHONY: clean
clean: ## remove what was built (not data/)
	rm -rf shoal .cache out
