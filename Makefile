# Each target is plain go commands; Go is all that is needed (and gcc for -race).
GO ?= go
export GOTOOLCHAIN = local
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2

.PHONY: build test test-fips lint gosec e2e demo bench gates fuzz fakekms clean

build: ## both programs, static, in bin/
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w" -o bin/ ./cmd/...

test: ## everything that needs only Go, also the API server's real client code
	$(GO) test -race -shuffle=on ./...
	cd test/apiserver && $(GO) test -race -shuffle=on ./...

e2e: ## real etcd and kube-apiserver; the first time they are built, which takes minutes
	$(GO) test -tags e2e -count=1 -timeout 40m -v ./test/e2e/...

demo: ## the main job, from nothing: real etcd, kube-apiserver and plugin
	@$(GO) run ./test/demo

FIPS = GOFIPS140=certified
test-fips: ## with Go's validated module; the parts that hold keys, and a daemon, under fips140=only
	$(FIPS) GODEBUG=fips140=only $(GO) test ./pkg/keys ./pkg/keys/localkek ./pkg/plugin ./internal/envelope ./internal/custody ./internal/state
	$(FIPS) $(GO) test -run FIPS ./cmd/kms-plugin
	CGO_ENABLED=0 $(FIPS) $(GO) build -trimpath -ldflags "-s -w" -o bin/fips/ ./cmd/kms-plugin

bench: ## beside a server that does nothing; prints the table of docs/performance.md
	$(GO) build -o bin/bench ./test/bench && bin/bench -json bin/bench.json

gates: ## the exact figures of bench: failures, remote calls, connections, memory
	$(GO) build -o bin/bench ./test/bench && bin/bench -gates

fakekms: ## an AWS KMS to play with; prints what to put into the configuration
	$(GO) run ./test/fakekms/cmd/fakekms

lint:
	@test -z "$$(gofmt -l .)" || { gofmt -l .; exit 1; }
	$(GO) vet ./... && $(GO) vet -tags e2e ./test/e2e/...
	cd test/apiserver && $(GO) vet ./...
	$(GO) run $(STATICCHECK) -tags e2e ./...

# Left out: G103, G115, G304 (every use of unsafe, of an integer conversion, of a
# path that is not constant), G404 (jitter is no secret), G104 (errors that are
# dropped are marked where they are), G407 (a nil nonce is how the random one is asked for).
GOSEC = github.com/securego/gosec/v2/cmd/gosec@v2.30.0
gosec: ## static analysis of what ships
	$(GO) run $(GOSEC) -quiet -exclude-dir=test -exclude=G103,G104,G115,G304,G404,G407 ./...

fuzz: ## ten minutes for each parser
	$(GO) test -run '^$$' -fuzz FuzzParse -fuzztime 10m ./internal/envelope
	$(GO) test -run '^$$' -fuzz FuzzParse -fuzztime 10m ./internal/config
	$(GO) test -run '^$$' -fuzz FuzzSplitKeyID -fuzztime 10m ./pkg/keys
	$(GO) test -run '^$$' -fuzz FuzzClassify -fuzztime 10m ./internal/stored
	$(GO) test -run '^$$' -fuzz FuzzParse -fuzztime 10m ./internal/encryptionconfig
	$(GO) test -run '^$$' -fuzz FuzzDecode -fuzztime 10m ./internal/etcdstore/snapshot

clean:
	rm -rf bin
