#!/bin/sh
# Pre-trains with one process a GPU on this machine; the same command again goes on, with any number of processes.
#
#   GPUS=8 examples/torchrun.sh photos/ --model vit-base --out runs/photos
#
# On the CPU, to try it out:  GPUS=2 examples/torchrun.sh digits --device cpu --epochs 0.2 --out runs/two
# Kill one of its processes:  kill -9 PID    (all start again, and go on from the last checkpoint; up to ten times)
# Too large for one GPU: add  --parallel fsdp   (each process holds a share of the model)
# On several machines: see docs/many-gpus.md; under Slurm: examples/slurm.sh
set -eu
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-4}"
exec torchrun --standalone --nproc-per-node "${GPUS:-1}" --max-restarts 10 --module unveil pretrain "$@"
