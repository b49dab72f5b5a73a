#!/usr/bin/env bash
# Runs one node, and beside it what forms the cluster and heals it. Nodes know each other by address, and keep that on
# their volumes: one that comes back elsewhere tells the others, unless all came back at once. Then no address holds.
set -eu

name() { echo "redis-cluster-$1.redis-cluster"; }
address() { getent hosts "$(name "$1")" | cut -d ' ' -f 1; }
info() { redis-cli cluster info | tr -d '\r' | sed -n "s/^$1://p"; }

form() { # creates the cluster of nodes that are all new
  local nodes=() i
  for ((i = 0; i < NODES; i++)); do
    [[ $(redis-cli -h "$(name "$i")" ping 2>&1) == PONG ]] || return 0
    nodes+=("$(address "$i"):6379")
  done
  redis-cli --cluster create "${nodes[@]}" --cluster-replicas "$REPLICAS" --cluster-yes
}

meet() { # tells all others where this node is
  local i
  for ((i = 0; i < NODES; i++)); do redis-cli cluster meet "$(address "$i")" 6379; done
}

watch() {
  while sleep 2; do
    if [[ $(info cluster_known_nodes) == 1 && $HOSTNAME == *-0 ]]; then
      form
    elif redis-cli cluster nodes | grep -q fail; then
      meet
    fi || true
  done
}

watch >/dev/null 2>&1 &
exec redis-server --cluster-enabled yes --cluster-config-file nodes.conf --cluster-node-timeout 5000 \
  --cluster-announce-ip "$POD_IP" --cluster-require-full-coverage no --maxmemory "$MAXMEMORY" \
  --maxmemory-policy allkeys-lru --save '' --appendonly no
