#!/usr/bin/env bash
# Installs extip on this machine without a package.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

usage() {
	cat <<-END
		usage: install.sh [--prefix DIR] [--no-start]     (as root)

		Installs extip as a service that starts before the Docker engine, and starts it. Run
		it again to upgrade: no packet is lost. From an archive of a release it needs
		nothing else; from a clone it builds the program, which needs Go.

		--prefix DIR   where the program and its papers go (default: /usr/local)
		--no-start     start it later: systemctl start extip
	END
}

die() { echo "install.sh: $*" >&2; exit 1; }

prefix=/usr/local start=yes
while (($# > 0)); do
	case $1 in
	--prefix) prefix=${2:?$(usage)} && shift ;;
	--no-start) start= ;;
	-h | --help) usage && exit ;;
	*) usage >&2 && exit 2 ;;
	esac
	shift
done
((EUID == 0)) || die "please run this as root"
[[ ! -e /usr/lib/systemd/system/extip.service ]] || die "extip is installed as a package; remove that first"

if [[ ! -x $here/extip ]]; then
	work=$(mktemp -d)
	trap 'rm -rf "$work"' EXIT
	cd "$here/.."
	. scripts/packages.sh
	. scripts/build.sh
	need_go
	stage "$work"
	build "$(go env GOARCH | sed 's/^arm$/armv7/')" "$work/extip"
	here=$work
fi

cd "$here"
# put MODE FILE DIR [NAME]
put() { install -D -m "$1" "$2" "$3/${4:-$(basename "$2")}"; }
put 755 extip "$prefix/bin"
for page in man/*; do put 644 "$page" "$prefix/share/man/man1"; done
put 644 completion/extip.bash "$prefix/share/bash-completion/completions" extip
put 644 completion/_extip "$prefix/share/zsh/site-functions"
put 644 completion/extip.fish "$prefix/share/fish/vendor_completions.d"
put 644 licenses.txt "$prefix/share/doc/extip" copyright
put 644 systemd/extip.socket /etc/systemd/system
sed "s|^ExecStart=/usr/bin/|ExecStart=$prefix/bin/|" systemd/extip.service >/etc/systemd/system/extip.service
[[ -e /etc/default/extip ]] || put 644 extip.default /etc/default extip
echo "extip $("$prefix/bin/extip" version) is installed in $prefix."

if [[ ! -d /run/systemd/system ]]; then
	echo "There is no systemd here: see that \"extip serve\" runs before the engine starts."
	exit
fi
systemctl daemon-reload
systemctl --quiet enable extip.socket extip.service
if [[ -n $start ]]; then
	systemctl start extip.socket
	systemctl restart extip.service
	echo "It runs, and will be there before the engine at each boot. Its settings are in /etc/default/extip."
fi
