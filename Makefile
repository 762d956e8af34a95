# Everything a contributor runs. CI runs scripts/test.sh, which calls these.

SHELL := bash -o pipefail

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

help: ## say what there is
	@sed -n 's/^\([a-z0-9]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

build: ## the program, as bin/extip: static, so it runs on any Linux
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-s -w -X main.version=$(VERSION)' -o bin/extip .

check: ## what needs no kernel: format, vet, staticcheck, modules, layout, licences, shell
	@unformatted=$$(gofmt -l .); test -z "$$unformatted" || { echo "gofmt -w $$unformatted"; exit 1; }
	go vet ./...
	go tool staticcheck ./...
	go mod tidy -diff
	go test -run 'TestLayout|TestLicences' .
	@if command -v shellcheck >/dev/null; then echo shellcheck; shellcheck -x scripts/*.sh .ci/run packaging/deb/* packaging/rpm/*; \
	else echo "shellcheck is not installed: the scripts are unchecked"; fi

vulns: ## known vulnerabilities of what we use; asks vuln.go.dev
	go run golang.org/x/vuln/cmd/govulncheck@v1.9.0 ./...

FUZZTIME := 60s
fuzz: ## everything that decodes what others wrote, FUZZTIME each
	@for target in $$(grep -rl '^func Fuzz' --include=*_test.go . | xargs -n1 dirname | sort -u); do \
		for name in $$(grep -ho '^func Fuzz[A-Za-z0-9]*' $$target/*_test.go | cut -d' ' -f2); do \
			echo "$$target $$name"; go test $$target -run XXX -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) || exit 1; \
		done; \
	done

# RACE=-race looks for data races too; that needs a C compiler.
test: ## unit tests, and those with the kernel in private namespaces
	go test -timeout 30m $(RACE) $$(go list ./... | grep -v /e2e)

# What tries both backends itself, or has nothing to do with them.
ONCE = TestSwarm|TestCompose|TestCompatibility|TestManaged|TestPackage|TestRelease|TestHarness|TestParents|TestTraffic|TestRepair|TestRecipe|TestBackendSwitch
ONCE := $(ONCE)|TestFirewalls|TestIPv6|TestTwoUplinks|TestFilters|TestDoctor|TestAdopt|TestAttacks|TestNeverTheHost|TestClaim|TestOneAnswers|TestDefaultParent|TestReservation
ONCE := $(ONCE)|TestParentComesLate|TestForeignOwner|TestLateOwner|TestTakeOver|TestForwardPolicy|TestWire|TestSecondPlugin|TestPool|TestTwoNetworks|TestAttachToNone|TestRouted$$|TestCluster|TestFloods|TestAccounting|TestLive
# -count=1, as go does not know that the tests run the program.
e2e: ## the whole thing with a real engine, with each backend; as root
	go test -count=1 -parallel 3 -timeout 60m ./e2e
	EXTIP_TEST_BACKEND=iptables go test -count=1 -parallel 3 -timeout 60m -skip '$(ONCE)' ./e2e

SEEDS ?= 2000
simulate: ## several hosts with all that may befall them, SEEDS histories
	EXTIP_SIM_SEEDS=$(SEEDS) go test -count=1 -run TestSimulation -v ./cluster | grep -E '^(---|ok|FAIL|PASS|panic)|^ {4}sim_test|^ {11}'

STEPS ?= 1000
soak: ## 1,000 random operations on the kernel, crashes and damage among them
	EXTIP_SOAK_STEPS=$(STEPS) go test -count=1 -timeout 60m -run TestSoak -v ./driver | grep -E '^(---|ok|FAIL|PASS|panic)|seed'

bench: ## measure it beside what people use instead; as root, ten minutes
	scripts/bench.sh

quickstart: ## see it work in a private lab; as root
	scripts/quickstart.sh

engines: ## with other engines of Debian's, into docs/compatibility.md; as root
	scripts/engines.sh

release: ## packages and archives of all architectures, in dist
	scripts/release.sh dist

clean: ## remove what build made
	rm -rf bin dist

.PHONY: help build check vulns fuzz test e2e simulate soak bench quickstart engines release clean
