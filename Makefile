# Each target is plain go commands; Go is all that is needed (and gcc for -race).
GO ?= go
export GOTOOLCHAIN = local
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2

.PHONY: build image test test-fips test-secret lint gosec e2e e2e-node chaos chaos-long soak demo bench gates fuzz fakekms clean

build: ## both programs, static, in bin/
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w" -o bin/ ./cmd/...

image: ## for amd64 and arm64 in bin/kms-plugin-image.tar, reproducible, without a container engine; prints the digest
	cd build/image && $(GO) run . -source ../.. -out ../../bin $(IMAGE_FLAGS)

test: ## everything that needs only Go, also the API server's real client code
	$(GO) test -race -shuffle=on ./...
	$(GO) test -count=1 -run OfADaemon ./cmd/kms-plugin
	cd test/apiserver && $(GO) test -race -shuffle=on ./...
	cd build/image && $(GO) test ./...
	cd test/alerts && $(GO) test ./...

e2e: ## real etcd and kube-apiserver; the first time they are built, which takes minutes
	$(GO) test -tags e2e -count=1 -timeout 85m -v ./test/e2e/...

e2e-node: ## real kubeadm nodes in namespaces; needs root, and installs containerd and others with apt
	$(GO) test -tags e2enode -count=1 -timeout 60m -parallel 4 -v ./test/e2enode/...

chaos: ## some cells of the outage matrix, outages of an hour compressed, no strangers, overload
	$(GO) test -tags e2e -count=1 -timeout 60m -v ./test/chaos

chaos-long: ## every cell; replaces the tables of docs/failure-modes.md. As root, half an hour
	CHAOS=all CHAOS_REPORT=$(CURDIR)/docs/failure-modes.md $(GO) test -tags e2e -count=1 -timeout 60m -v -run TestMatrix ./test/chaos

soak: ## twenty minutes of faults; what the plugins hold must stay flat
	CHAOS_SOAK=20m $(GO) test -tags e2e -count=1 -timeout 40m -v -run TestSoak ./test/chaos

demo: ## the main job, from nothing: real etcd, kube-apiserver and plugin
	@$(GO) run ./test/demo

FIPS = GOFIPS140=certified
test-fips: ## with Go's validated module; the parts that hold keys, and a daemon, under fips140=only
	$(FIPS) GODEBUG=fips140=only $(GO) test ./pkg/keys ./pkg/keys/localkek ./pkg/plugin ./internal/envelope ./internal/custody ./internal/state
	$(FIPS) $(GO) test -run FIPS ./cmd/kms-plugin
	CGO_ENABLED=0 $(FIPS) $(GO) build -trimpath -ldflags "-s -w" -o bin/fips/ ./cmd/kms-plugin

SECRET = GOEXPERIMENT=runtimesecret
test-secret: ## with Go's experiment that erases local KEKs which are dropped; a daemon too (docs/hardening.md)
	$(SECRET) $(GO) vet ./cmd/kms-plugin ./pkg/keys/localkek
	$(SECRET) $(GO) test -count=1 ./pkg/keys/localkek
	$(SECRET) $(GO) test -count=1 -run TestMemoryOfADaemon ./cmd/kms-plugin
	CGO_ENABLED=0 $(SECRET) $(GO) build -trimpath -ldflags "-s -w" -o bin/secret/ ./cmd/kms-plugin

bench: ## beside a server that does nothing; prints the table of docs/performance.md
	$(GO) build -o bin/bench ./test/bench && bin/bench -json bin/bench.json

gates: ## the exact figures of bench: failures, remote calls, connections, memory
	$(GO) build -o bin/bench ./test/bench && bin/bench -gates

fakekms: ## an AWS KMS to play with; prints what to put into the configuration
	$(GO) run ./test/fakekms/cmd/fakekms

lint:
	@test -z "$$(gofmt -l .)" || { gofmt -l .; exit 1; }
	$(GO) vet ./... && $(GO) vet -tags e2e,e2enode ./test/e2e/... ./test/e2enode/... ./test/chaos/...
	cd test/apiserver && $(GO) vet ./...
	cd test/alerts && $(GO) vet ./...
	cd build/image && $(GO) vet ./... && $(GO) run $(STATICCHECK) ./...
	$(GO) run $(STATICCHECK) -tags e2e,e2enode ./...

# Left out: G103, G115, G304 (every use of unsafe, of an integer conversion, of a
# path that is not constant), G404 (jitter is no secret), G104 (errors that are
# dropped are marked where they are), G407 (a nil nonce is how the random one is asked for).
GOSEC = github.com/securego/gosec/v2/cmd/gosec@v2.30.0
gosec: ## static analysis of what ships
	$(GO) run $(GOSEC) -quiet -exclude-dir=test -exclude-dir=build -exclude=G103,G104,G115,G304,G404,G407 ./...

FUZZTIME ?= 10m
fuzz: ## every fuzz target, one after the other; FUZZTIME=10m for each, FUZZ=Name for some
	@grep -rn --include='*_test.go' -o '^func Fuzz[A-Za-z]*' . | grep '$(FUZZ)' | sort | while IFS=: read -r file _ name; do \
		echo "== $$(dirname $$file) $${name#func }"; \
		$(GO) test -run '^$$' -fuzz "^$${name#func }\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1s -parallel 1 $$(dirname $$file) || exit 1; \
	done

clean:
	rm -rf bin
