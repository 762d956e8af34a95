#!/usr/bin/env bash
# Runs the end-to-end tests with other engines than the machine's, and writes
# what came of it to docs/compatibility.md.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/packages.sh

usage() {
	cat <<-END
		usage: scripts/engines.sh [--unpack] [SUITE...]     (as root, on Debian)

		Unpacks the engines of Debian's suites, trixie and sid if none is named, beside each
		other, tries extip in each form and beside each firewall with them and with the
		machine's own, and writes the table in docs/compatibility.md. Nothing of them is
		installed.

		--unpack   only unpack, and print the folders: EXTIP_TEST_ENGINE=DIR make e2e
	END
}

only=''
while (($# > 0)); do
	case $1 in
	--unpack) only=yes ;;
	-h | --help) usage && exit ;;
	-*) usage >&2 && exit 2 ;;
	*) break ;;
	esac
	shift
done
((EUID == 0)) || die "please run this as root"
if (($# == 0)); then set -- trixie sid; fi
cache=${XDG_CACHE_HOME:-/var/cache}/extip/engines
mkdir -p "$cache"

# mirror RELEASE: prints where the machine has that release from.
mirror() {
	awk -v release="$1" -v RS= '/^Types:/ {
		uri = found = ""
		for (i = 1; i < NF; i++) if ($i == "URIs:") uri = $(i + 1)
		for (i = 1; i <= NF; i++) if ($i == release) found = 1
		if (found && uri != "") { print uri; exit }
	}' /etc/apt/sources.list.d/*.sources 2>/dev/null | grep . ||
		awk -v release="$1" '$1 == "deb" { for (i = 2; i < NF; i++) if ($(i + 1) == release) { print $i; exit } }' \
			/etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null
}

# unpack SUITE: prints the folder of its engine's programs. They come from the
# mirror in use; only these calls of apt-get know the suite.
unpack() {
	local suite=$1 release dir programs
	release=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
	dir=$(mktemp -d)
	mkdir -p "$dir"/{lists/partial,debs}
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(mirror "$release") $suite main" >"$dir/sources.list"
	cat >"$dir/apt.conf" <<-END
		Dir::Etc::sourcelist "$dir/sources.list";
		Dir::Etc::sourceparts "/dev/null";
		Dir::State::lists "$dir/lists";
		Dir::Cache::pkgcache "";
		Dir::Cache::srcpkgcache "";
	END
	(
		cd "$dir/debs"
		export APT_CONFIG=$dir/apt.conf
		apt-get -q update
		apt-get -q download docker.io docker-cli containerd docker-compose
	) >"$dir/log" 2>&1 || { tail -20 "$dir/log" >&2; die "the engine of $suite can't be had"; }
	mkdir "$dir/root"
	for deb in "$dir"/debs/*.deb; do dpkg-deb -x "$deb" "$dir/root"; done
	programs=$cache/$suite
	rm -rf "$programs"
	mkdir "$programs"
	find "$dir"/root/usr/{bin,sbin,libexec/docker/cli-plugins} -type f -exec cp -t "$programs" {} +
	rm -rf "$dir"
	echo "$programs"
}

engines=()
for suite; do
	dir=$cache/$suite
	[[ -x $dir/dockerd ]] || dir=$(unpack "$suite")
	engines+=("$dir")
	if [[ -n $only ]]; then echo "$dir"; fi
done
if [[ -n $only ]]; then exit; fi

need_engine
need iptables=iptables nft=nftables ip=iproute2 docker-compose=docker-compose
need_go
EXTIP_TEST_COMPATIBILITY=$PWD/docs/compatibility.md
export EXTIP_TEST_COMPATIBILITY
for dir in "" "${engines[@]}"; do
	EXTIP_TEST_ENGINE=$dir go test -count=1 -run '^(TestCompatibility|TestCompose)$' ./e2e
done
