#!/usr/bin/env bash
# Runs a command on the first of two hosts, host1 and host2, that last as long as it does: each has a network of its
# own at a bridge, a name, a hosts file in which that name is its address, a disk at FOLDER/disk and an sshd.
# usage: unshare --net --mount --uts --pid --fork --kill-child --mount-proc hosts.sh FOLDER COMMAND [ARGUMENT ...]
# FOLDER holds what lies on their disks, in host1/ and host2/. All that this makes elsewhere (interfaces, mounts,
# processes) lives in the namespaces of that `unshare` and vanishes with them.
set -euo pipefail

port() { echo "220$1"; }

address() { echo "10.77.0.$1"; }

make_keys() { # one for logging in, one of each host, known beforehand
  local host
  ssh-keygen -q -t ed25519 -N '' -f "$folder/key"
  for host in 1 2; do
    ssh-keygen -q -t ed25519 -N '' -f "$folder/host_key$host"
    printf '[host%s]:%s %s\n' "$host" "$(port "$host")" "$(cut -d ' ' -f 1,2 "$folder/host_key$host.pub")"
  done >"$folder/known_hosts"
}

write_configuration() {
  local host
  printf '127.0.0.1 localhost\n%s host1\n%s host2\n' "$(address 1)" "$(address 2)" >"$folder/hosts"
  for host in 1 2; do
    printf 'Host host%s\n  Port %s\n' "$host" "$(port "$host")"
  done >"$folder/ssh_config"
  cat >>"$folder/ssh_config" <<TEXT
Host *
  IdentityFile $folder/key
  IdentitiesOnly yes
  UserKnownHostsFile $folder/known_hosts
TEXT
  for host in 1 2; do
    cat >"$folder/sshd_config$host" <<TEXT
Port $(port "$host")
HostKey $folder/host_key$host
AuthorizedKeysFile $folder/key.pub
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
PidFile none
TEXT
  done
}

be_host() { # NUMBER: run in the host's own namespaces
  hostname "host$1"
  mount --bind "$folder/hosts" /etc/hosts
  mount --bind "$folder/ssh_config" /etc/ssh/ssh_config
  mount --bind "$folder/host$1" "$folder/disk"
  ip link set lo up
  until ip link show eth0 >/dev/null 2>&1; do sleep 0.1; done # the other side puts it here
  ip address add "$(address "$1")/24" dev eth0
  ip link set eth0 up
  exec "$(command -v sshd)" -D -e -f "$folder/sshd_config$1"
}

start_host() { # NUMBER: leaves the number of its first process in `pid`
  unshare --net --mount --uts bash "$0" --be "$folder" "$1" >"$folder/sshd$1.log" 2>&1 &
  pid=$!
  until [ "$(readlink "/proc/$pid/ns/net")" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.1; done
  ip link add "host$1" type veth peer name eth0 netns "$pid"
  ip link set "host$1" master bridge up
}

wait_for_sshd() { # PID FROM WHICH TO CALL, NUMBER
  local tries=0
  until nsenter --target "$1" --net --mount --uts ssh "host$2" true 2>"$folder/ssh.log"; do
    tries=$((tries + 1))
    [ "$tries" -lt 100 ] || { cat "$folder/ssh.log" "$folder/sshd$2.log" >&2; exit 1; }
    sleep 0.2
  done
}

PATH=$PATH:/usr/sbin:/sbin
if [ "$1" = --be ]; then
  folder=$2
  be_host "$3"
fi
folder=$1
shift
mkdir "$folder/disk"
make_keys
write_configuration
mount -t tmpfs tmpfs /run
mkdir /run/sshd # sshd insists on it
ip link add bridge type bridge
ip link set bridge up
start_host 2
start_host 1
wait_for_sshd "$pid" 2
status=0
nsenter --target "$pid" --net --mount --uts env --chdir="$PWD" "$@" || status=$?
exit "$status"
