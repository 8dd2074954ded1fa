# The nodes' network: a namespace each, joined by a bridge, so that a node's localhost is its own.
# Sourced by scripts/cluster.
# shellcheck shell=bash

BRIDGE=swsrv0
SUBNET=${SWAPSERVE_LAB_SUBNET:-10.213.77} # a /24 of the lab's own
node_ns() { echo "swsrv-$1"; }
node_address() { echo "$SUBNET.$((10 + $1))"; }

can_netns() {
  ip netns add swsrv-probe 2>/dev/null || return 1
  local ok=0
  {
    ip -n swsrv-probe link set lo up &&
      ip link add swsrvp0 type veth peer name swsrvp1 netns swsrv-probe
  } 2>/dev/null || ok=1
  ip netns del swsrv-probe
  return "$ok"
}

# Files that every node sees as its own /etc/hosts and /etc/nsswitch.conf: with DNS out of reach, each look-up
# of a host name would wait for its time-out.
write_names() {
  local i
  {
    echo "127.0.0.1 localhost"
    echo "$SUBNET.1 $(hostname -s)"
    for i in $(seq "$NODES"); do echo "$(node_address "$i") n$i"; done
  } >"$LAB/etc/hosts"
  printf '%s: files\n' passwd group shadow hosts services >"$LAB/etc/nsswitch.conf"
}

net_up() {
  [ "$NET" = netns ] || return 0
  write_names
  ip link add "$BRIDGE" type bridge
  ip addr add "$SUBNET.1/24" dev "$BRIDGE"
  ip link set "$BRIDGE" up
  local i ns
  for i in $(seq "$NODES"); do
    ns=$(node_ns "$i")
    ip netns add "$ns"
    ip link add "swsrv-v$i" type veth peer name eth0 netns "$ns"
    ip link set "swsrv-v$i" master "$BRIDGE" up
    ip -n "$ns" link set lo up
    ip -n "$ns" addr add "$(node_address "$i")/24" dev eth0
    ip -n "$ns" link set eth0 up
  done
}

net_down() {
  local ns
  for ns in $(ip netns list 2>/dev/null | awk '/^swsrv-/ { print $1 }'); do
    ip netns pids "$ns" | xargs -r kill -KILL 2>/dev/null || true
    ip netns del "$ns"
  done
  ip link del "$BRIDGE" 2>/dev/null || true
}

# on_node I CMD...: run CMD as node I, with its network, host name, and names.
on_node() {
  local i=$1
  shift
  if [ "$NET" != netns ]; then
    "$@"
    return
  fi
  # shellcheck disable=SC2016 # the inner shell expands them
  nsenter --net="/run/netns/$(node_ns "$i")" unshare --uts --mount --propagation private bash -c '
    set -e
    hostname "$0"
    mount --bind "$1/hosts" /etc/hosts
    mount --bind "$1/nsswitch.conf" /etc/nsswitch.conf
    shift
    exec "$@"' "n$i" "$LAB/etc" "$@"
}
