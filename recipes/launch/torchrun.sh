#!/usr/bin/env bash
# Data parallel under torchrun, which sets the number of processes, whatever trainer.devices says.
#
# One node, 4 processes:
#   NPROC=4 recipes/launch/torchrun.sh trainer=ddp optimizer=adamw
# Two nodes, 4 processes each: the same command on both, HOST being the first:
#   RUN=my-run NNODES=2 RENDEZVOUS=HOST:29500 NPROC=4 recipes/launch/torchrun.sh trainer=ddp
set -euo pipefail
run=${RUN:-$(date +%Y-%m-%d/%H-%M-%S)} # one output folder for all ranks: by Hydra's clock each would get its own
nodes=${NNODES:-1}
if [[ $nodes == 1 ]]; then
    rendezvous=(--standalone)
else
    : "${RUN:?several nodes: give all the same name, RUN=...}" "${RENDEZVOUS:?several nodes: give RENDEZVOUS=HOST:PORT}"
    rendezvous=(--rdzv-backend=c10d --rdzv-endpoint="$RENDEZVOUS" --rdzv-id="$run")
fi
exec python -m torch.distributed.run "${rendezvous[@]}" --nnodes="$nodes" --nproc-per-node="${NPROC:-1}" \
    "$(dirname "$0")/../train.py" hydra.run.dir="outputs/$run" "$@"
