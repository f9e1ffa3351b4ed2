#!/bin/sh
# One node of a training stage that runs on several: train-node STAGE. All of them share the project's folder, for
# checkpoints are sharded. Node 0 brings the project and what the stage reads, runs it as `dvc repro` does, and hands it
# over; the others join once it listens for them.
#
#   R1FLOW_NODE_RANK   of this node, from 0
#   R1FLOW_RENDEZVOUS  host:port of node 0
#   R1FLOW_PROJECT     the shared folder; R1FLOW_REPOSITORY and R1FLOW_REVISION as for the entry point
set -eu
stage=${1:?must name a stage}
: "${R1FLOW_NODE_RANK:?}" "${R1FLOW_RENDEZVOUS:?must be host:port}" "${R1FLOW_PROJECT:?}"

if [ "$R1FLOW_NODE_RANK" = 0 ]; then
    # shellcheck disable=SC2016 # $1 is the inner one's
    exec project sh -euc '
        timeout 3600 dvc pull --quiet --run-cache --allow-missing
        dvc repro --wait-for-lock --pull --allow-missing --single-item "$1"
        timeout 3600 dvc push --quiet --run-cache' train-node "$stage"
fi
waited=0
until python -c 'import socket, sys; host, _, port = sys.argv[1].rpartition(":"); socket.create_connection((host, int(port)), 5).close()' "$R1FLOW_RENDEZVOUS" 2> /dev/null; do
    waited=$((waited + 2))
    if [ "$waited" -gt 7200 ]; then
        echo "train-node: nobody listens at $R1FLOW_RENDEZVOUS after two hours" >&2
        exit 1
    fi
    sleep 2
done
cd "$R1FLOW_PROJECT"
exec python -m pipeline "$stage"
