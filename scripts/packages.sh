# shellcheck shell=bash
# Sourced by the other scripts: puts on this machine what they need, quietly,
# and without starting any service.

export PATH=$PATH:/usr/local/go/bin:/usr/sbin:/sbin HOME=${HOME:-/root}

die() { echo "$0: $*" >&2; exit 1; }

# again COMMAND...: up to three times, as a mirror may have its moments.
again() {
	local pause
	for pause in 5 30; do
		if "$@"; then return; fi
		echo "   once more, in $pause s: $*" >&2
		sleep $pause
	done
	"$@"
}

# need PROGRAM=PACKAGE...: installs the packages whose program is missing.
need() {
	local pair missing=()
	for pair; do
		command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
	done
	((${#missing[@]} == 0)) || apt_install "${missing[@]}"
}

# need_engine: Debian 12 and Ubuntu keep the engine's client in the same package.
need_engine() { need dockerd=docker.io && need docker=docker-cli; }

# need_etcd: Debian's etcd, only unpacked: installed it would start with the machine.
# internal/etcdtest finds it there.
need_etcd() {
	local dir=${XDG_CACHE_HOME:-/var/cache}/extip/etcd root
	if { command -v etcd && command -v etcdctl; } >/dev/null || [[ -x $dir/etcd && -x $dir/etcdctl ]]; then return; fi
	command -v apt-get >/dev/null || die "this is not Debian or Ubuntu; please install etcd and etcdctl"
	echo "   unpacking: etcd-server etcd-client"
	root=$(mktemp -d)
	(
		cd "$root"
		apt-get -q update || true # as for apt_install
		apt-get -q download etcd-server etcd-client
		for deb in *.deb; do dpkg-deb -x "$deb" .; done
	) >"$root.log" 2>&1 || { tail -20 "$root.log" >&2; die "apt-get could not download etcd"; }
	mkdir -p "$dir"
	cp "$root"/usr/bin/etcd{,ctl} "$dir"
	rm -rf "$root" "$root.log"
}

# apt_install PACKAGE...: a subshell, for its own trap.
apt_install() (
	command -v apt-get >/dev/null || die "this is not Debian or Ubuntu; please install: $*"
	log=$(mktemp) policy=/usr/sbin/policy-rc.d
	trap 'rm -f "$log"' EXIT
	if [[ ! -e $policy ]]; then
		# What a package asks before it starts its service: no (101).
		trap 'rm -f "$log" "$policy"' EXIT
		printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy"
	fi
	export DEBIAN_FRONTEND=noninteractive
	echo "   installing: $*"
	again apt_once "$log" install "$@" || die "apt-get could not install: $*"
)

# apt_once LOG ARGUMENT...: gets packages. Another apt-get, such as that of a
# machine that has just booted, is waited for.
apt_once() {
	local log=$1 patient=(-q -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3)
	shift
	# A foreign source that can't be updated doesn't matter if the packages are there.
	{ apt-get "${patient[@]}" update; apt-get "${patient[@]}" -y --no-install-recommends "$@"; } >"$log" 2>&1 </dev/null ||
		{ tail -20 "$log" >&2; return 1; }
}

# need_routing: BIRD and FRR. Installed, their daemons would run from the
# machine's next start on; so they are only unpacked, where e2e looks for them.
need_routing() (
	root=${XDG_CACHE_HOME:-/var/cache}/extip/routing
	[[ ! -d $root/bin ]] || return 0
	apt_unpack "$root" bird2 frr
	libs=("$root"/usr/lib/*-linux-gnu{,/frr})
	mkdir "$root/new"
	for program in "$root"/usr/{sbin/bird,bin/vtysh,lib/frr/{zebra,bfdd,bgpd}}; do
		printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s "$@"\n' "$(IFS=:; echo "${libs[*]}")" "$program" >"$root/new/${program##*/}"
	done
	chmod 755 "$root"/new/*
	mv "$root/new" "$root/bin"
)

# apt_unpack DIR PACKAGE...: unpacks packages, and what they need and the
# machine doesn't have, and installs nothing.
apt_unpack() (
	log=$(mktemp) debs=$(mktemp -d) dir=$1
	trap 'rm -rf "$log" "$debs"' EXIT
	shift
	echo "   unpacking: $*"
	again apt_once "$log" --download-only --reinstall -o Dir::Cache::archives="$debs" install "$@" || die "apt-get could not download: $*"
	rm -rf "$dir" && mkdir -p "$dir"
	for deb in "$debs"/*.deb; do dpkg-deb -x "$deb" "$dir"; done
)

# need_go: any Go since 1.21 will do, as it fetches the one that go.mod names.
need_go() {
	local have candidate
	if ! go_at_least 1.21; then
		candidate=$(apt-cache policy golang-go 2>/dev/null | sed -n 's/.*Candidate: [0-9]*:*//p')
		if dpkg --compare-versions "${candidate:-0}" ge 1.21; then
			apt_install golang-go
		else
			go_from_backports
		fi
		go_at_least 1.21 || die "Go 1.21 or newer is needed, and the distribution has none: unpack the Go project's archive to /usr/local/go and try again"
	fi
	have=$(sed -n 's/^go //p' go.mod)
	go_at_least "$have" || export GOTOOLCHAIN=auto
}

# go_at_least VERSION: the version that is installed, not what it would fetch.
go_at_least() {
	local have
	have=$(GOTOOLCHAIN=local go env GOVERSION 2>/dev/null) && dpkg --compare-versions "${have#go}" ge "$1"
}

# go_from_backports: Debian's own newer packages for its stable release, from
# the mirror in use. Only this call of apt-get knows that source.
go_from_backports() {
	local release dir
	release=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
	dir=$(mktemp -d)
	cp -r /etc/apt/sources.list.d "$dir"
	[[ ! -e /etc/apt/sources.list ]] || cp /etc/apt/sources.list "$dir/sources.list.d/main.list"
	sed -i "s/\b$release-updates\b/$release-backports/" "$dir"/sources.list.d/*
	cat >"$dir/apt.conf" <<-END
		Dir::Etc::sourcelist "/dev/null";
		Dir::Etc::sourceparts "$dir/sources.list.d";
		APT::Default-Release "$release-backports";
	END
	APT_CONFIG=$dir/apt.conf apt_install golang-go || true
	rm -rf "$dir"
}
