# make run, make test and make bench are all most people need; make help lists the rest.

GO            ?= go
# Go's own stamp of the version control's state fails where the checkout belongs to another user.
GOBUILDFLAGS  := -buildvcs=false -trimpath
VERSION       ?= $(shell git -c safe.directory='*' describe --tags --always --dirty 2>/dev/null)
COMMIT        ?= $(shell git -c safe.directory='*' rev-parse HEAD 2>/dev/null)
STAMP         := -X accesskeys/internal/buildinfo.version=$(VERSION) -X accesskeys/internal/buildinfo.commit=$(COMMIT)
FUZZTIME      ?= 60s
BENCHTIME     ?= 10s

# The linter is pinned and built here, so that everybody gets the same findings.
GOLANGCI_LINT_VERSION := v2.15.0
GOLANGCI_LINT         := bin/golangci-lint-$(GOLANGCI_LINT_VERSION)

# The race detector needs a C compiler. Without one the tests still run, and say so. It need not watch argon2 and bcrypt,
# which only work on memory of their own: watching the 19 MiB of each hash took half of the time of all tests.
CC_FOUND := $(shell command -v $$($(GO) env CC) 2>/dev/null)
RACE     := $(if $(CC_FOUND),-race -gcflags=golang.org/x/crypto/...=-race=false,)

.DEFAULT_GOAL := help
.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z.][a-z.-]*:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Said before minutes of building. The places are those of internal/privatepg.
POSTGRES_PLACES := /usr/lib/postgresql/*/bin /opt/homebrew/opt/postgresql*/bin /usr/local/opt/postgresql*/bin \
	/home/linuxbrew/.linuxbrew/opt/postgresql*/bin
.PHONY: find-postgres
find-postgres:
	@[ -n "$(DATABASE_URL)$(TEST_DATABASE_URL)" ] || command -v initdb >/dev/null || ls -d $(POSTGRES_PLACES) 2>/dev/null | grep -q . || \
		{ echo "There is no PostgreSQL on this machine. On Debian, scripts/install postgres installs it and starts no service of it." >&2; exit 1; }

.PHONY: run
run: find-postgres build ## the server on a Postgres of its own, with demo credentials; Ctrl-C stops both
	@exec bin/server dev

.PHONY: build
build: ## bin/server, a static binary
	@mkdir -p bin
	@CGO_ENABLED=0 $(GO) build $(GOBUILDFLAGS) -ldflags='-s -w $(STAMP)' -o bin/server ./cmd/server

.PHONY: test
test: find-postgres ## every test, on a real Postgres (TEST_DATABASE_URL, or one of its own)
ifeq ($(RACE),)
	@echo "No C compiler was found: these tests run WITHOUT the race detector (apt-get install gcc libc6-dev)."
endif
	@mkdir -p bin && rm -f bin/chaos.txt
	@# Most tests wait for a lease or a lock, so that more of them run at once than there are cores.
	@# go test shows what a passing test prints only with -v, which would show everything.
	CHAOS_REPORT=$(CURDIR)/bin/chaos.txt $(GO) test $(RACE) -parallel 8 -shuffle=on -count=1 -timeout 20m ./...; status=$$?; cat bin/chaos.txt 2>/dev/null; exit $$status

.PHONY: chaos
chaos: ## what was revoked is refused, whatever breaks: every scenario and every control, 10 minutes or more
	CHAOS=long $(GO) test -count=1 -v -timeout 40m -run '^(TestRevokedIsRefusedEverywhere|TestWhatARestoreTookAwayIsForgotten)$$' ./test/chaos

.PHONY: e2e
e2e: ## proxies, pgbouncer, failovers, other languages' clients and tools; installs what they need on Debian
	@scripts/install caddy curl etcd etcdctl haproxy ip jq nginx node npm openssl patroni pgbouncer pgrep postgres unshare
	$(GO) test -tags e2e -count=1 -run 'IndependentTools|DocumentedScript|DocumentOnServiceAccounts|SlowClientsTakeBoundedMemory' ./internal/api ./cmd/server
	$(GO) test -tags e2e -count=1 -v -timeout 60m ./test/e2e

.PHONY: fuzz
fuzz: ## every fuzz target, FUZZTIME each (60s)
	@grep -rHo '^func Fuzz[A-Za-z0-9_]*' --include='*_test.go' internal | sed 's/:func / /' | while read -r file name; do \
		echo "== $$name"; \
		$(GO) test -run '^$$' -fuzz "^$$name$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x "./$$(dirname "$$file")" || exit 1; \
	done

.PHONY: bench
bench: build ## what the check costs, beside our router without it and a bare handler; BENCH_KEYS keys (a million)
	$(GO) test -tags bench -run '^$$' -bench 'Goals|Requests|Footprint' -benchtime $(BENCHTIME) -timeout 60m ./test/bench

.PHONY: bench-depth
bench-depth: build ## a page nine million keys down a list of BENCH_DEPTH_KEYS (ten million; 10 GB of disk)
	BENCH_DEPTH_KEYS=$${BENCH_DEPTH_KEYS:-10000000} $(GO) test -tags bench -run '^$$' -bench Depth -benchtime $(BENCHTIME) -timeout 60m ./test/bench

.PHONY: bench-instances
bench-instances: build ## what 1, 10, 30 and 100 instances cost their database (4 GB of memory)
	$(GO) test -tags bench -run '^$$' -bench Instances -benchtime 1x -timeout 30m ./test/bench

.PHONY: bench-compare
bench-compare: build ## what requests cost beside another commit, in turns: make bench-compare BASE=commit
	@[ -n "$(BASE)" ] || { echo "Name the commit to compare with: make bench-compare BASE=HEAD~1" >&2; exit 2; }
	@base=$$(mktemp -d) && trap 'rm -rf "$$base"' EXIT && \
	git -c safe.directory='*' archive $(BASE) | tar -x -C "$$base" && \
	(cd "$$base" && CGO_ENABLED=0 $(GO) build $(GOBUILDFLAGS) -ldflags='-s -w' -o base ./cmd/server) && \
	BENCH_BASE="$$base/base" $(GO) test -tags bench -run '^$$' -bench Compare -benchtime $(BENCHTIME) -timeout 60m ./test/bench

.PHONY: fmt
fmt: ## format the code
	gofmt -s -w .

.PHONY: lint
lint: $(GOLANGCI_LINT) ## formatting, go vet and the linters of .golangci.yaml
	@unformatted=$$(gofmt -s -l .); if [ -n "$$unformatted" ]; then echo "gofmt -s would change:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet -tags bench,e2e ./...
	$(GOLANGCI_LINT) run

$(GOLANGCI_LINT):
	@mkdir -p bin
	GOBIN=$(CURDIR)/bin/install $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION)
	@mv bin/install/golangci-lint $@ && rmdir bin/install

.PHONY: smoke
smoke: build ## make run as a new user would: the printed curl lines, docs/tour.md, Ctrl-C, nothing left behind
	scripts/smoke

.PHONY: model
model: ## search the model of revocation for a way around it (spin, gcc)
	scripts/model

.env: ## secrets for docker compose, made once
	@umask 077 && { \
		echo "JWT_SECRET=$$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')"; \
		echo "POSTGRES_PASSWORD=$$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')"; \
		echo "BOOTSTRAP_PASSWORD=$$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')"; \
	} > $@
	@echo "wrote $@"

.PHONY: clean
clean: ## remove what was built, and the data of make run
	rm -rf bin .dev
