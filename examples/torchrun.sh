#!/bin/sh
# Pre-trains with one process a GPU on this machine; the same command again goes on, with any number of processes.
#
#   GPUS=8 examples/torchrun.sh photos/ --model vit-base --out runs/photos
#
# On the CPU, to try it out:  GPUS=2 examples/torchrun.sh digits --device cpu --epochs 0.2 --out runs/two
# Too large for one GPU: add  --parallel fsdp   (each process holds a share of the model)
# On two machines: replace --standalone by  --nnodes 2 --node-rank 0 (or 1) --rdzv-backend c10d --rdzv-endpoint HOST:29500
set -eu
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-4}"
exec torchrun --standalone --nproc-per-node "${GPUS:-1}" --module unveil pretrain "$@"
