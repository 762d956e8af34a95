#!/usr/bin/env bash
# Measures extip beside what people use instead of it, in a private lab on this
# machine. What is compared is measured in turn, in the same run.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/packages.sh

usage() {
	cat <<-END
		usage: scripts/bench.sh [--quick] [--only SECTIONS] [--json FILE]     (as root)

		--quick           a look of less than two minutes, instead of ten
		--only SECTIONS   comma-separated: driver, run, traffic, churn
		--json FILE       where the figures go, with charts beside it (default: .lab/bench.json)

		EXTIP_TEST_ENGINE=DIR measures with the engine in DIR.
	END
}

file=.lab/bench.json
while (($# > 0)); do
	case $1 in
	--quick) export EXTIP_BENCH_QUICK=1 ;;
	--only) export EXTIP_BENCH_ONLY=${2:?$(usage)} && shift ;;
	--json) file=${2:?$(usage)} && shift ;;
	-h | --help) usage && exit ;;
	*) usage >&2 && exit 2 ;;
	esac
	shift
done
((EUID == 0)) || die "please run this as root"

need_engine
need iptables=iptables nft=nftables ip=iproute2 git=git
need_go
mkdir -p "$(dirname "$file")"
EXTIP_BENCH=$(realpath "$file")
export EXTIP_BENCH

# Compiled first, and run without go test around it, which would hold its
# output back.
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
go test -c -o "$dir/bench" ./e2e
cd e2e
"$dir/bench" -test.run '^TestBench$' -test.timeout 20m
