#!/usr/bin/env bash
# The Zephyr pipeline: dSFT, reference log-probs, dDPO, export. Run it on every host of a TPU slice, or on one machine.
#
#   uv run launch/zephyr.sh                   configs/zephyr-7b-beta; arguments are passed to sft, reference and dpo
#   CARDS=configs/zephyr-7b-beta-paper uv run launch/zephyr.sh
#
# Environment: CARDS, a folder with sft.yaml and dpo.yaml (configs/zephyr-7b-beta); OUT, prefix of the outputs (runs/zephyr-7b;
# several hosts need gs://bucket/name or shared storage). It writes OUT-sft, OUT-reference, OUT-dpo and OUT-hf, the export. Run
# other cards with another OUT. On a TPU, LIBTPU_INIT_ARGS and TPU_FLAGS: see launch/flags.sh.
#
# If it is interrupted, run it again: training resumes from its newest checkpoint, and the reference pass computes only
# the missing entries of its table.
set -euo pipefail
cd "$(dirname "$0")/.."

export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}  # huge pages for large host arrays: 10 % faster on CPUs
CARDS=${CARDS:-configs/zephyr-7b-beta}          # folder with sft.yaml and dpo.yaml
OUT=${OUT:-runs/zephyr-7b}                      # prefix of all outputs; several hosts need shared storage: gs://bucket/name
if [ -n "${TPU_CHIP:-}${TPU_ACCELERATOR_TYPE:-}$(compgen -G '/dev/accel*' || compgen -G '/dev/vfio/[0-9]*')" ]; then
  . launch/flags.sh ""                          # TPU compiler flags
fi

# 1. dSFT: fine-tune Mistral-7B on a teacher's conversations; the loss counts the assistant's tokens only.
zephyr-jax sft --config "$CARDS/sft.yaml" --output "$OUT-sft" "$@"

# 2. Reference: compute the log-probs of every preference pair once with the dSFT weights.
zephyr-jax reference --config "$CARDS/dpo.yaml" --model.path "$OUT-sft" --reference "$OUT-reference" "$@"

# 3. dDPO: train the dSFT weights to prefer chosen over rejected answers.
zephyr-jax dpo --config "$CARDS/dpo.yaml" --model.path "$OUT-sft" --reference "$OUT-reference" --output "$OUT-dpo" "$@"

# 4. Export: a Hugging Face folder with tokenizer and chat template.
zephyr-jax export --model.path "$OUT-dpo" --output "$OUT-hf"
