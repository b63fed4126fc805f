GO ?= go
GOBIN := $(CURDIR)/.cache/bin

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.PHONY: proto
proto: ## regenerate proto/ (needs protoc: Debian's protobuf-compiler)
	mkdir -p $(GOBIN)
	GOBIN=$(GOBIN) $(GO) install tool
	PATH="$(GOBIN):$$PATH" protoc -I proto --go_out=proto --go_opt=paths=source_relative \
		--go-grpc_out=proto --go-grpc_opt=paths=source_relative proto/shoalpb/*.proto
