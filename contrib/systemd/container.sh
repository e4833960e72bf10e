# Sourced by packaging/life-test and faults/boot/container: a throw-away copy of this machine, booted with systemd-nspawn, and
# senders of events that talk to ampcio there. Needs root; leaves nothing behind, however it ends.

cannot() {
	echo "no container can be booted here: $1"
	exit 77
}
[ "$(id -u)" = 0 ] || cannot "only root can"
for tool in systemd-nspawn nsenter unshare curl; do
	command -v "$tool" >/dev/null || cannot "$tool is not installed"
done
# In a mount namespace of its own nothing stays mounted, however this ends.
if [ "${AMPCIO_BOOT_TEST:-}" != inside ]; then
	unshare --mount true || cannot "no mount namespaces"
	AMPCIO_BOOT_TEST=inside exec unshare --mount --propagation private "$0" "$@"
fi

work=$(mktemp -d)
nspawn='' leader='' senders=() group='' storage=''
finish() {
	local status=$?
	trap - EXIT
	if [ "$status" != 0 ] && [ "$status" != 77 ] && [ -n "$leader" ]; then
		inside journalctl --no-pager -n 60 -u ampcio.service -u ampcio.socket || true
	fi
	exec 2>/dev/null # bash tells of everybody who is killed
	[ -z "$storage" ] || fsfreeze --unfreeze "$storage" || true # who waits for a frozen disk cannot be killed
	for pid in "${senders[@]}" $leader $nspawn; do
		kill -KILL "$pid" 2>/dev/null || true
	done
	wait 2>/dev/null || true
	local until=$((SECONDS + 60)) # on a busy machine the kernel takes its time with who was killed, and holds the disk as long
	while [ -d "$group" ] && [ "$SECONDS" -lt "$until" ]; do
		find "$group" -depth -type d -exec rmdir {} + || sleep 0.1
	done
	until umount -R "$work/disk" || ! mountpoint -q "$work/disk" || [ "$SECONDS" -ge "$until" ]; do
		sleep 0.1
	done
	rm -rf "$work"
	exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say() { printf '%3d s  %s\n' "$SECONDS" "$*"; }
wrong() {
	say "WRONG: $*"
	exit 1
}
# expect WHAT WANT GOT
expect() { [ "$2" = "$3" ] || wrong "$1: want '$2', got '$3'"; }
# soon WHAT COMMAND…: within 20 s
soon() {
	local what=$1 until=$((SECONDS + 20))
	shift
	until "$@" >/dev/null 2>&1; do
		[ "$SECONDS" -lt "$until" ] || wrong "waited 20 s for: $what"
		sleep 0.1
	done
}

inside() { nsenter --target "$leader" --all --wd=/ "$@"; }
property() { inside systemctl show --value --property "$1" ampcio.service; }
running() { [ "$(property ActiveState) $(property SubState)" = "active running" ]; }
# back PID: running again, as another process than PID
back() { running && [ "$(property MainPID)" != "$1" ]; }
sandbox() { inside curl -sS --max-time 10 "http://127.0.0.1:8090/_sandbox/$1" "${@:2}"; }
# reported NAME: that number in the sandbox's report
reported() { sandbox report | grep -o "\"$1\": *[0-9]*" | grep -o '[0-9]*$'; }
journal_says() { inside journalctl --no-pager -u ampcio.service | grep "$1" >/dev/null; } # not -q: journalctl would die of SIGPIPE
delivered() { [ "$(reported unique_events)" = "$1" ]; }

boot() {
	(
		[ -z "$group" ] || echo "$BASHPID" >"$group/cgroup.procs"
		exec systemd-nspawn --directory="$root" --register=no --keep-unit --private-network --resolv-conf=off --timezone=off \
			--boot systemd.unit=multi-user.target >>"$work/console" 2>&1 </dev/null
	) &
	nspawn=$!
	local until=$((SECONDS + 20)) child state=''
	until [ "$state" = running ] || [ "$state" = degraded ]; do
		if ! kill -0 "$nspawn" 2>/dev/null || [ "$SECONDS" -ge "$until" ]; then
			tail -n 5 "$work/console"
			cannot "systemd did not come up"
		fi
		sleep 0.1
		for child in $(cat "/proc/$nspawn/task/$nspawn/children" 2>/dev/null); do
			[ "$(cat "/proc/$child/comm" 2>/dev/null)" != systemd ] || leader=$child
		done
		[ -z "$leader" ] || state=$(inside timeout $((until - SECONDS + 1)) systemctl is-system-running --wait 2>/dev/null) || true
	done
}

start_sandbox() {
	inside systemd-run --quiet --collect --unit=sandbox /usr/bin/ampcio sandbox --listen 127.0.0.1:8090 \
		--site-id site --api-key secret-key --order-attribute n --check-overlap
	soon "the sandbox" sandbox report
}

# one USER N: sends an event on a connection of its own; says curl's exit status and the HTTP status
one() {
	local status=0 answer
	answer=$(nsenter --target "$leader" --net curl -s --max-time 10 -o /dev/null -w '%{http_code}' \
		-H 'Content-Type: application/json' http://127.0.0.1:8080/2/httpapi -d '{"api_key":"0123456789abcdef","events":[
			{"event_type":"Step","user_id":"user-'"$1"'","insert_id":"'"$1-$2"'","event_properties":{"n":'"$2"'}}]}' 2>/dev/null) || status=$?
	echo "$status $answer"
}
# Two users send one event after another; one that is not acknowledged is sent again. A line for each try.
send() {
	rm -f "$work/stop"
	for user in ada bob; do
		(
			n=$(($(grep -c '^0 200$' "$work/tries-$user") + 1)) || true
			while [ ! -e "$work/stop" ]; do
				answer=$(one "$user" "$n")
				echo "$answer" >>"$work/tries-$user"
				[ "$answer" != "0 200" ] || n=$((n + 1))
			done
		) &
		senders+=($!)
	done
}
end_sending() {
	touch "$work/stop"
	wait "${senders[@]}"
	senders=()
}
# tries [-v] PATTERN: how many tries ended like that
tries() { cat "$work"/tries-* | grep -c "$@" || true; }

# machine: copies this machine, without what would run there and without any ampcio
machine() {
	mkdir "$work/disk"
	mount -t tmpfs -o size=2g tmpfs "$work/disk" || cannot "no tmpfs"
	root=$work/disk/root
	mkdir "$root" "$work/disk/upper" "$work/disk/work"
	mount -t overlay -o "lowerdir=/,upperdir=$work/disk/upper,workdir=$work/disk/work" overlay "$root" || cannot "no overlay"
	rm -rf "$root"/etc/systemd/system/*.wants "$root"/etc/systemd/system/ampcio* "$root"/etc/ampcio "$root"/var/lib/ampcio
	touch "$work/tries-ada" "$work/tries-bob"
	# A control group of its own: the systemds of two machines that share one would wait for each other's processes.
	local all
	for all in /sys/fs/cgroup/systemd /sys/fs/cgroup; do
		[ -e "$all/cgroup.procs" ] || continue
		group=$all/ampcio-$$
		mkdir "$group" 2>/dev/null || group=''
		break
	done
}

# disk SIZE: /var/lib/ampcio is an ext4 of its own, which can be frozen
disk() {
	mkdir "$root/var/lib/ampcio"
	truncate --size "$1" "$work/disk/storage"
	mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 "$work/disk/storage"
	mount -o loop "$work/disk/storage" "$root/var/lib/ampcio" || cannot "no loop devices"
	storage=$root/var/lib/ampcio
}

# configure: what an operator fills in, with the sandbox as Customer.io
configure() {
	inside install -m 0640 -g ampcio /dev/stdin /etc/ampcio/config.toml <<'TOML'
[project.app]
amplitude_api_keys = ["0123456789abcdef"]
relay = "off"

[sync.production]
region       = "us"
site_id      = "site"
api_key_file = "customerio_api_key"
endpoint     = "http://127.0.0.1:8090"

[[sync.production.select]]
event = ["*"]

[sync.production.events]
properties = ["n"]

[sync.production.delivery]
retry_max = "1s"

[storage]
min_free = "1MiB"
TOML
	printf secret-key | inside install -m 0600 /dev/stdin /etc/ampcio/customerio_api_key
}
