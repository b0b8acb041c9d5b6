#!/usr/bin/env bash
# The whole Zephyr recipe, to be read from top to bottom and run on every host of a TPU slice (or on one machine).
#
#   uv run launch/zephyr.sh                   the 2024 recipe; arguments go to sft, reference and dpo alike
#   CARDS=configs/zephyr-7b-beta-paper uv run launch/zephyr.sh
#
# Every line may be killed and run again: training goes on from its newest checkpoint, and the reference pass computes only
# what its table lacks.
set -euo pipefail
cd "$(dirname "$0")/.."

export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}  # large pages for large host arrays: a tenth faster on CPUs
CARDS=${CARDS:-configs/zephyr-7b-beta}          # what to run: a folder with sft.yaml and dpo.yaml
OUT=${OUT:-runs/zephyr-7b}                      # where everything goes; many hosts need a place that all see: gs://bucket/name
if [ -n "${TPU_CHIP:-}${TPU_ACCELERATOR_TYPE:-}$(compgen -G '/dev/accel*' || compgen -G '/dev/vfio/[0-9]*')" ]; then
  . launch/flags.sh ""                          # on a TPU: what its compiler is told, flag by flag
fi

# 1. dSFT: fine-tune Mistral-7B on a teacher's conversations; the loss counts the assistant's tokens only.
zephyr-jax sft --config "$CARDS/sft.yaml" --output "$OUT-sft" "$@"

# 2. The frozen reference: score every preference pair once with the dSFT weights.
zephyr-jax reference --config "$CARDS/dpo.yaml" --model.path "$OUT-sft" --reference "$OUT-reference" "$@"

# 3. dDPO: start from the dSFT weights, pull towards chosen answers and away from rejected ones.
zephyr-jax dpo --config "$CARDS/dpo.yaml" --model.path "$OUT-sft" --reference "$OUT-reference" --output "$OUT-dpo" "$@"

# 4. A Hugging Face folder that transformers and vLLM load, with tokenizer and chat template.
zephyr-jax export --model.path "$OUT-dpo" --output "$OUT-hf"
