#!/usr/bin/env bash
# Makes what is shipped of a version.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/packages.sh
. scripts/build.sh

usage() {
	cat <<-END
		usage: scripts/release.sh DIR [ARCH...]

		Makes in DIR, for amd64, arm64 and armv7 or those that are named: an archive with the
		program and install.sh, a .deb, an .rpm, and a list of what it is made of (SBOM,
		CycloneDX); and their checksums. The same commit gives the same bytes.

		VERSION=v1.2.3 is the version, in place of what git says.
	END
}

case ${1:-} in
-h | --help) usage && exit ;;
"" | -*) usage >&2 && exit 2 ;;
esac
need_go
mkdir -p "$1"
out=$(realpath "$1")
shift
if (($# == 0)); then set -- amd64 arm64 armv7; fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
name=extip-$(package_version)
export STAGE=$work/$name PACKAGE_VERSION ARCH
PACKAGE_VERSION=$(package_version)
stage "$STAGE"

# quietly COMMAND...: shows its output only if it fails.
quietly() { "$@" >"$work/log" 2>&1 || { cat "$work/log" >&2 && die "failed: $*"; }; }

tool() { go tool -modfile=packaging/tools.mod "$@"; }

for ARCH; do
	echo "   $VERSION $ARCH"
	build "$ARCH" "$STAGE/extip"
	tar -C "$work" --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner \
		--mode=a=rX,u+w -c "$name" |
		gzip -n9 >"$out/$name-linux-$ARCH.tar.gz"
	quietly tool cyclonedx-gomod bin -json -noserial -notimestamp -std \
		-version "$VERSION" -output "$out/$name-linux-$ARCH.sbom.json" "$STAGE/extip"
	if [[ $ARCH == armv7 ]]; then ARCH=arm7; fi # as nfpm has it
	for packager in deb rpm; do
		quietly tool nfpm package -f packaging/nfpm.yaml -p $packager -t "$out"
	done
done
cd "$out"
sha256sum extip* >SHA256SUMS
