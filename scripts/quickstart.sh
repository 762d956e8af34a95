#!/usr/bin/env bash
# Shows what extip does, in a private lab on this machine: an engine in
# namespaces of its own, an outside machine beside it, and between them a
# container with an external address.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/packages.sh

usage() {
	cat <<-END
		usage: scripts/quickstart.sh [--keep]     (as root, on Debian or Ubuntu)

		Installs what is missing from the distribution (no service is started), builds
		extip, and shows it at work in a private lab. The machine's own interfaces,
		rules and settings stay as they are, and nothing of the lab is left behind.

		--keep   leave the lab up, and say how to enter and how to end it
	END
}

outside=203.0.113.200 host=203.0.113.10 external=203.0.113.56 # for documentation (RFC 5737)

step() { printf '\n%d. %s   [%d s]\n' "$1" "$2" $(($(date +%s) - START)); }
indent() { sed 's/^/      /'; }

# show WHERE COMMAND...: runs it on the host or outside, as one would see it there.
show() {
	local where=$1
	shift
	echo "   $where# $*"
	if [[ $where == outside ]]; then set -- nsenter --net=/run/netns/outside -- "$@"; fi
	"$@" 2>&1 | indent
}

# expect TEXT WHERE COMMAND...: show, and the text must be in the output.
expect() {
	local want=$1 got
	shift
	got=$(show "$@") || true
	echo "$got"
	[[ $got == *"$want"* ]] || die "expected: $want"
}

### The machine

main() {
	case ${1:-} in
	"") ;;
	--keep) export KEEP=yes ;;
	--lab) lab && exit ;;
	-h | --help) usage && exit ;;
	*) usage >&2 && exit 2 ;;
	esac
	((EUID == 0)) || die "please run this as root"
	export START LAB
	START=$(date +%s)

	step 1 "What is needed from the distribution"
	need_engine
	need iptables=iptables nft=nftables ip=iproute2 ping=iputils-ping mount=mount
	need_go
	echo "   $(dockerd --version)"

	step 2 "Build, with $(go version | cut -d' ' -f3)"
	LAB=$(mktemp -d "${TMPDIR:-/tmp}/extip-quickstart-XXXXXX")
	trap tidy EXIT
	CGO_ENABLED=0 go build -v -buildvcs=false -o "$LAB/extip" . 2>&1 | counted
	CGO_ENABLED=0 go build -buildvcs=false -o "$LAB/probe" ./e2e/probe
	echo "   extip: $(du -h "$LAB/extip" | cut -f1), one static program"

	local network settings unshare code=0
	network=$(network) settings=$(settings)
	# The lab is a process namespace: when its first process ends, so does everything in it.
	local enter=(unshare --mount --net --uts --ipc --pid --fork --mount-proc --propagation private)
	if [[ -n ${KEEP:-} ]]; then
		setsid "${enter[@]}" -- "$PWD/scripts/quickstart.sh" --lab </dev/null &
		unshare=$!
		until [[ -e $LAB/up ]]; do
			kill -0 $unshare 2>/dev/null || die "the lab did not come up"
			sleep 0.1
		done
	else
		"${enter[@]}" --kill-child -- "$PWD/scripts/quickstart.sh" --lab || code=$?
	fi

	step 9 "This machine: interfaces, addresses, routes, rules, settings"
	diff <(echo "$network") <(network) || die "they differ from before (<)"
	# A kernel module that the lab needs may bring new settings; old ones stay.
	comm -23 <(echo "$settings") <(settings) | { ! grep .; } || die "these settings have changed"
	echo "   as before"
	((code == 0)) || exit "$code"
	if [[ -n ${KEEP:-} ]]; then kept $unshare; fi
	cat <<-END

		To install it:  scripts/install.sh
		and then what step 4 shows, with your own interface and addresses.
	END
}

# counted turns the compiler's list of packages into progress; what has more
# to say than a name passes.
counted() { awk 'NF > 1 { print "   " $0 } NF == 1 && ++n % 25 == 0 { printf "   %d packages compiled\n", n }'; }

network() {
	ip -o link
	ip -o addr | sed 's/\\ *valid_lft.*//'
	ip route show table all | sed 's/ expires [0-9]*sec//'
	ip rule
	nft -s list ruleset
	for tool in iptables-legacy-save ip6tables-legacy-save; do
		if command -v $tool >/dev/null; then $tool | sed '/^#/d; s/\[[0-9:]*\]//'; fi
	done
}

# Some can't be read, so grep fails.
settings() { { grep -rs '' /proc/sys/net || true; } | grep -v nf_conntrack_count | sort; }

# kept UNSHARE_PID: its child is the lab's first process.
kept() {
	local pid
	trap - EXIT
	pid=$(grep -lE "^PPid:\s+$1$" /proc/[0-9]*/status 2>/dev/null | cut -d/ -f3) || true
	cat <<-END

		The lab is up.  On the docker host:  nsenter -t $pid -m -n -u -i -p bash
		                Outside:             nsenter -t $pid -m -n -u -i -p nsenter --net=/run/netns/outside bash
		                Try there:           $LAB/probe ask tcp $external:80
		                To end it:           kill $pid
	END
}

# tidy removes what could outlive the lab's processes.
tidy() {
	find /sys/fs/cgroup -depth -type d -path "*/${LAB##*/}*" -exec rmdir {} + 2>/dev/null || true
	rm -rf "$LAB" 2>/dev/null || true
}

### The lab, in which this shell is the first process and /run is new

lab() {
	trap end_lab EXIT
	trap 'exit 130' INT TERM
	export PATH=$LAB:$PATH DOCKER_HOST=unix:///run/docker.sock DOCKER_CONFIG=$LAB
	local before after

	step 3 "The lab: a docker host ($host) and an outside machine ($outside) on one network"
	mount -t tmpfs tmpfs /run && mkdir -p /run/docker/plugins /run/lock
	hostname host
	ip link set lo up
	ip netns add outside
	ip link add eth0 type veth peer name eth0 netns outside
	ip link add br-ex type bridge
	ip link set eth0 master br-ex up
	ip addr add $host/24 dev br-ex
	ip link set br-ex up
	ip -n outside addr add $outside/24 dev eth0
	ip -n outside link set eth0 up
	nsenter --net=/run/netns/outside -- unshare --uts -- sh -c 'hostname outside; exec probe serve 80' &>/dev/null &

	echo '{}' >"$LAB/daemon.json" # in place of the machine's
	# container= keeps it from loading an AppArmor profile, which has no namespace.
	container=lab dockerd --config-file "$LAB/daemon.json" --data-root "$LAB/data" --host $DOCKER_HOST \
		--cgroup-parent "/${LAB##*/}" &>"$LAB/dockerd.log" &
	engine=$!
	listening $engine /run/docker.sock "$LAB/dockerd.log"
	extip serve --state "$LAB/extip.db" &>"$LAB/extip.log" &
	plugin=$!
	listening $plugin /run/docker/plugins/extip.sock "$LAB/extip.log"
	tar -C "$LAB" -c probe | docker import - probe >/dev/null
	echo "   engine $(docker version -f '{{.Server.Version}}'), $(iptables --version), extip serve"
	before=$(docker_host)

	step 4 "A network with external addresses, and a container that has one of them"
	show host docker network create -d extip --subnet 172.31.0.0/16 \
		-o extip.parent=br-ex -o extip.pool=$external-203.0.113.62 web
	show host docker run -d --name web --hostname web \
		--network "name=web,driver-opt=extip.address=$external" probe /probe serve 80

	for ((i = 0; i < 600; i++)); do # its program takes a moment
		if docker exec web /probe ask tcp 127.0.0.1:80 &>/dev/null; then break; fi
		sleep 0.1
	done

	step 5 "From outside, TCP, UDP and ICMP reach it, and it sees who is really there"
	expect "web saw $outside" outside probe ask tcp $external:80
	expect "web saw $outside" outside probe ask udp $external:80
	expect " 0% packet loss" outside ping -q -c 1 -W 30 $external

	step 6 "It goes out from its own external address, not the host's"
	expect "outside saw $external" host docker exec web /probe ask tcp $outside:80
	expect "outside saw $external" host docker exec web /probe ask udp $outside:80

	step 7 "The rules behind it"
	expect "$external : 172.31.0.2" host nft list map ip extip ext2ctr
	expect "172.31.0.2 : $external" host nft list map ip extip ctr2ext

	if [[ -n ${KEEP:-} ]]; then
		touch "$LAB/up"
		exec &>/dev/null
		sleep infinity &
		wait $!
	fi

	step 8 "Container and network go, and all of this with them"
	show host docker rm -f web
	show host docker network rm web
	after=$(docker_host)
	diff <(echo "$before") <(echo "$after") || die "something stayed behind (>)"
	echo "   the docker host's addresses and rules are as before"
}

# docker_host: its addresses, its rules, and the chains that aren't built in.
docker_host() { ip -o -4 addr && iptables-save | sed -n '/^-A/p; /^:.* - /s/ \[.*//p'; }

# listening PID SOCKET LOG: waits until the program has its socket.
listening() {
	for ((i = 0; i < 1200; i++)); do
		if [[ -S $2 ]]; then return; fi
		if ! kill -0 "$1" 2>/dev/null; then break; fi
		sleep 0.05
	done
	tail -20 "$3" >&2
	die "this did not start: $(basename "$3" .log)"
}

end_lab() {
	local code=$?
	trap - EXIT
	docker ps -aq 2>/dev/null | xargs -r docker rm -f &>/dev/null || true
	for pid in ${engine:-} ${plugin:-}; do # in this order: the engine has calls for the plugin
		kill "$pid" 2>/dev/null || true
		wait "$pid" || true
	done
	tidy
	exit $code
}

main "$@"
