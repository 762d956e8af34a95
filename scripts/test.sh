#!/usr/bin/env bash
# Installs what the tests need and runs all of them. Without root, tests that
# need it are skipped, or fail with EXTIP_TEST_REQUIRE=1.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/packages.sh

say() { printf '\n== %s (%d s)\n' "$*" "$SECONDS"; }

if ((EUID == 0)); then
	say "what the tests need"
	need_engine
	need_etcd
	need iptables=iptables nft=nftables ip=iproute2 sysctl=procps mount=mount conntrack=conntrack ethtool=ethtool \
		ovs-vswitchd=openvswitch-switch mmdebstrap=mmdebstrap dbus-daemon=dbus-daemon python3=python3 ssh=openssh-client curl=curl \
		docker-registry=docker-registry docker-compose=docker-compose \
		git=git make=make shellcheck=shellcheck
	need_routing
	need_go
fi
again go version # may fetch the one that go.mod names
again go mod download

say "make check"
make check

say "make vulns"
# Only what was found counts (govulncheck ends with 3), not that nobody could be asked.
unasked="   known vulnerabilities are not checked: vuln.go.dev does not answer"
if ! curl -sf -m 5 -o /dev/null https://vuln.go.dev/index/modules.json; then
	echo "$unasked"
elif ! found=$(timeout 300 make vulns 2>&1); then
	echo "$found"
	[[ $found != *"exit status 3"* ]] || exit 1
	echo "$unasked"
fi

# Go's race detector needs a C compiler with its headers; a compiler without is of no use.
race=-race
if ! "$(go env CC)" -E - <<<'#include <pthread.h>' &>/dev/null; then
	race='' && export CGO_ENABLED=0
fi
say "make test $race"
make test RACE=$race

say "make simulate"
make simulate

say "make soak STEPS=300"
make soak STEPS=300

say "make e2e"
make e2e

if ((EUID == 0)); then
	say "make quickstart"
	make quickstart
fi

say "all passed"
