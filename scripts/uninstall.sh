#!/usr/bin/env bash
# Removes what install.sh has installed.
set -euo pipefail

usage() {
	cat <<-END
		usage: uninstall.sh [--prefix DIR] [--purge] [--force]     (as root)

		--prefix DIR   where install.sh was told to put it (default: /usr/local)
		--purge        remove settings and state, too: /etc/default/extip, /var/lib/extip
		--force        even if the engine has networks of extip. Their containers keep their
		               addresses until they stop, and can't be started again
	END
}

die() { echo "uninstall.sh: $*" >&2; exit 1; }

prefix=/usr/local purge='' force=''
while (($# > 0)); do
	case $1 in
	--prefix) prefix=${2:?$(usage)} && shift ;;
	--purge) purge=yes ;;
	--force) force=yes ;;
	-h | --help) usage && exit ;;
	*) usage >&2 && exit 2 ;;
	esac
	shift
done
((EUID == 0)) || die "please run this as root"
if [[ -z $force ]] && command -v docker >/dev/null; then
	networks=$(timeout 10 docker network ls --filter driver=extip --format '{{.Name}}' 2>/dev/null | xargs) || true
	[[ -z $networks ]] || die "the engine still has networks of extip; docker network rm $networks"
fi

if [[ -d /run/systemd/system && -e /etc/systemd/system/extip.service ]]; then
	# Both at once, or the socket would start the service again.
	systemctl --quiet disable --now extip.socket extip.service
fi
rm -f /etc/systemd/system/extip.{socket,service}
if [[ -d /run/systemd/system ]]; then systemctl daemon-reload; fi
rm -f "$prefix"/bin/extip "$prefix"/share/man/man1/extip{,-*}.1.gz "$prefix"/share/bash-completion/completions/extip \
	"$prefix"/share/zsh/site-functions/_extip "$prefix"/share/fish/vendor_completions.d/extip.fish
rm -rf "$prefix/share/doc/extip"
# Folders that install.sh may have made.
(cd "$prefix/share" && rmdir man/man1 doc bash-completion{/completions,} zsh{/site-functions,} fish{/vendor_completions.d,} 2>/dev/null) || true
if [[ -n $purge ]]; then rm -rf /etc/default/extip /var/lib/extip; fi
echo "extip is removed."
