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
	need iptables=iptables nft=nftables ip=iproute2 conntrack=conntrack ethtool=ethtool \
		ovs-vswitchd=openvswitch-switch mmdebstrap=mmdebstrap ssh=openssh-client curl=curl \
		git=git make=make shellcheck=shellcheck
	need_go
fi
go version

say "make check"
make check

race=
if [[ $(go env CGO_ENABLED) == 1 ]] && command -v "$(go env CC)" >/dev/null; then race=-race; fi
say "make test $race"
make test RACE=$race

say "make e2e"
make e2e

say "all passed"
