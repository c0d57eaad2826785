# Each target is plain go commands; Go is all that is needed (and gcc for -race).
GO ?= go
export GOTOOLCHAIN = local
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2

.PHONY: build image test lint e2e e2e-node demo bench gates fuzz fakekms clean

build: ## both programs, static, in bin/
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w" -o bin/ ./cmd/...

image: ## for amd64 and arm64 in bin/kms-plugin-image.tar, reproducible, without a container engine; prints the digest
	cd build/image && $(GO) run . -source ../.. -out ../../bin $(IMAGE_FLAGS)

test: ## everything that needs only Go, also the API server's real client code
	$(GO) test -race -shuffle=on ./...
	cd test/apiserver && $(GO) test -race -shuffle=on ./...
	cd build/image && $(GO) test ./...

e2e: ## real etcd and kube-apiserver; the first time they are built, which takes minutes
	$(GO) test -tags e2e -count=1 -timeout 60m -v ./test/e2e/...

e2e-node: ## real kubeadm nodes in namespaces; needs root, and installs containerd and others with apt
	$(GO) test -tags e2enode -count=1 -timeout 60m -parallel 4 -v ./test/e2enode/...

demo: ## the main job, from nothing: real etcd, kube-apiserver and plugin
	@$(GO) run ./test/demo

bench: ## beside a server that does nothing; prints the table of docs/performance.md
	$(GO) build -o bin/bench ./test/bench && bin/bench -json bin/bench.json

gates: ## the exact figures of bench: failures, remote calls, connections, memory
	$(GO) build -o bin/bench ./test/bench && bin/bench -gates

fakekms: ## an AWS KMS to play with; prints what to put into the configuration
	$(GO) run ./test/fakekms/cmd/fakekms

lint:
	@test -z "$$(gofmt -l .)" || { gofmt -l .; exit 1; }
	$(GO) vet ./... && $(GO) vet -tags e2e,e2enode ./test/e2e/... ./test/e2enode/...
	cd test/apiserver && $(GO) vet ./...
	cd build/image && $(GO) vet ./... && $(GO) run $(STATICCHECK) ./...
	$(GO) run $(STATICCHECK) -tags e2e,e2enode ./...

fuzz: ## ten minutes for each parser
	$(GO) test -run '^$$' -fuzz FuzzParse -fuzztime 10m ./internal/envelope
	$(GO) test -run '^$$' -fuzz FuzzParse -fuzztime 10m ./internal/config
	$(GO) test -run '^$$' -fuzz FuzzSplitKeyID -fuzztime 10m ./pkg/keys
	$(GO) test -run '^$$' -fuzz FuzzClassify -fuzztime 10m ./internal/stored
	$(GO) test -run '^$$' -fuzz FuzzParse -fuzztime 10m ./internal/encryptionconfig
	$(GO) test -run '^$$' -fuzz FuzzManifest -fuzztime 10m ./internal/preflight/cluster
	$(GO) test -run '^$$' -fuzz FuzzFiles -fuzztime 10m ./internal/bootstrap
	$(GO) test -run '^$$' -fuzz FuzzInput -fuzztime 10m ./internal/bootstrap
	$(GO) test -run '^$$' -fuzz FuzzDecode -fuzztime 10m ./internal/etcdstore/snapshot
	$(GO) test -run '^$$' -fuzz FuzzVerify -fuzztime 10m ./internal/audit/evidence
	$(GO) test -run '^$$' -fuzz FuzzAnchors -fuzztime 10m ./internal/audit/evidence

clean:
	rm -rf bin
