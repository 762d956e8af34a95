# shellcheck shell=bash
# Sourced by the other scripts: how what is shipped is built. The same commit
# and the same Go give the same bytes, wherever and whenever.

export CGO_ENABLED=0 LC_ALL=C TZ=UTC
umask 022

# VERSION is the tag, with how many commits are on top of it.
VERSION=${VERSION:-$(git describe --tags --always --dirty 2>/dev/null || echo unknown)}

# SOURCE_DATE_EPOCH is the time of whatever has one: that of the commit.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
export VERSION SOURCE_DATE_EPOCH

# package_version prints VERSION so that packages are in the right order: 1.2.3,
# 1.2.3+4.gabcdef of commits on top of it, and 0~20060102150405.gabcdef, with
# the time, before any tag.
package_version() {
	case $VERSION in
	v[0-9]*-[0-9]*-g*) sed -E 's/^v(.*)-([0-9]+)-g/\1+\2.g/; s/-dirty$/+dirty/; s/-/~/g' <<<"$VERSION" ;;
	v[0-9]*) sed -E 's/^v//; s/-dirty$/+dirty/; s/-/~/g' <<<"$VERSION" ;;
	*) echo "0~$(date -d "@$SOURCE_DATE_EPOCH" +%Y%m%d%H%M%S).g${VERSION/-/+}" ;;
	esac
}

# build ARCH FILE: the program, for amd64, arm64 or armv7; static, so that it
# runs on any Linux.
build() (
	export GOOS=linux GOARCH=${1/armv7/arm}
	if [[ $1 == armv7 ]]; then export GOARM=7; fi
	go build -trimpath -buildvcs=false -ldflags "-s -w -buildid= -X main.version=$VERSION" -o "$2" .
)

# stage DIR: everything that is shipped but the program.
stage() {
	local dir
	mkdir -p "$1/man" "$1/completion"
	dir=$(realpath "$1")
	EXTIP_MANUAL=$dir/man go test -count=1 -run '^TestManual$' . >/dev/null
	gzip -n9 "$dir"/man/*
	go run . completion bash >"$dir/completion/extip.bash"
	go run . completion zsh >"$dir/completion/_extip"
	go run . completion fish >"$dir/completion/extip.fish"
	licenses >"$dir/licenses.txt"
	cp -r README.md CHANGELOG.md LICENSE packaging/systemd packaging/extip.default scripts/install.sh scripts/uninstall.sh "$dir"
}

# licenses prints extip's license and those of what it is linked with.
licenses() {
	local module version dir
	printf 'extip %s\n\n' "$VERSION"
	cat LICENSE
	printf '\n\n%s\n\n' "The Go runtime and standard library, $(go env GOVERSION)"
	cat "$(go env GOROOT)/LICENSE"
	go list -deps -f '{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}} {{.Dir}}{{end}}{{end}}' . | sort -u |
		while read -r module version dir; do
			printf '\n\n%s\n\n' "$module $version"
			find "$dir" -maxdepth 1 -type f \( -iname 'licen[cs]e*' -o -iname 'notice*' -o -iname 'copying*' \) | sort | {
				grep . || die "$module has no license that could be found"
			} | xargs -d '\n' cat
		done
}
