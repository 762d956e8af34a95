#!/usr/bin/env bash
# Makes the managed plugin and gives it to the Docker engine.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
cd "$here"
. scripts/packages.sh
. scripts/build.sh

usage() {
	cat <<-END
		usage: scripts/build-plugin.sh [--program FILE] [--arch ARCH] [NAME:TAG]

		Makes the managed plugin, extip/plugin:VERSION if no name is given, and gives it to
		the engine that docker talks to. It is enabled by docker plugin enable, or pushed
		to a registry by docker plugin push and installed from there.

		--program FILE   what was built already, in place of building it
		--arch ARCH      amd64, arm64 or armv7 (default: this machine's)
		--only DIR       leave it in DIR, as docker plugin create takes it
	END
}

program='' arch='' only='' name=''
while (($# > 0)); do
	case $1 in
	--program) program=${2:?$(usage)} && shift ;;
	--arch) arch=${2:?$(usage)} && shift ;;
	--only) only=${2:?$(usage)} && shift ;;
	-h | --help) usage && exit ;;
	-*) usage >&2 && exit 2 ;;
	*) name=$1 ;;
	esac
	shift
done
# A tag has no + in it.
name=${name:-extip/plugin:$(package_version | tr '+~' '--')}

dir=${only:-$(mktemp -d)}
[[ -n $only ]] || trap 'rm -rf "$dir"' EXIT
rootfs=$dir/rootfs
mkdir -p "$rootfs"/{data,usr,sbin,etc,tmp,run,host/proc/sys/net,host/run/docker/plugins}
if [[ -n $program ]]; then
	install -m 755 "$program" "$rootfs/extip"
else
	need_go
	build "${arch:-$(go env GOARCH | sed 's/^arm$/armv7/')}" "$rootfs/extip"
fi
# The host's iptables is used, and its libraries: /usr is mounted, and these are
# the names by which they are found. It is the one that writes to nf_tables: the
# other one needs a lock that the host's programs share.
for lib in lib lib32 lib64; do ln -sfn usr/$lib "$rootfs/$lib"; done
for tool in ip{,6}tables{,-save,-restore}; do ln -sfn /usr/sbin/xtables-nft-multi "$rootfs/sbin/$tool"; done
cp plugin/config.json "$dir/config.json"
[[ -z $only ]] || exit 0
docker plugin create "$name" "$dir"
