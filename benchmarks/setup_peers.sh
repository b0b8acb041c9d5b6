#!/usr/bin/env bash
# Makes the two environments of benchmarks/peers.py: FOLDER/trl and FOLDER/tunix. Scripts in tests/golden use them, too.
# Environment:
#   TRL_PYTHON, TUNIX_PYTHON  interpreters (3.11 and 3.12 or newer); default: python3
#   TORCH_INDEX               URL of a further wheel index with CPU builds of torch, which spares some gigabytes of CUDA libraries;
#                             default: the index that pip is configured with
set -euo pipefail

if [ $# -ne 1 ]; then
    echo "usage: benchmarks/setup_peers.sh FOLDER   (outside the repository)" >&2
    exit 2
fi
folder=$1

make_environment() { # NAME INTERPRETER MINOR VARIABLE: an empty environment with a new enough Python 3
    if ! "$2" -c "import sys; sys.exit(sys.version_info < (3, $3))"; then
        echo "$1 needs Python 3.$3 or newer and $2 is not: set $4 to such an interpreter and rerun" >&2
        exit 1
    fi
    "$2" -m venv --clear "$folder/$1"
}

mkdir -p "$folder"
make_environment trl "${TRL_PYTHON:-python3}" 11 TRL_PYTHON
pip=("$folder/trl/bin/pip" install --quiet)
"${pip[@]}" torch==2.13.0 ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"}
"${pip[@]}" trl==1.16.0 transformers==5.24.0 datasets==5.2.0 accelerate==1.15.0 peft==0.21.2
"${pip[@]}" --no-deps bitsandbytes==0.50.2 # only tests/golden/make_lora_golden.py uses it, on the CPU

make_environment tunix "${TUNIX_PYTHON:-python3}" 12 TUNIX_PYTHON
pip=("$folder/tunix/bin/pip" install --quiet)
"${pip[@]}" google-tunix==0.1.7 jax==0.12.0.1 flax==0.12.12 qwix==0.1.8

"$folder/trl/bin/python" -c 'import peft, torch, trl; print("trl", trl.__version__, "torch", torch.__version__, "peft", peft.__version__)'
"$folder/tunix/bin/python" -c 'import jax, tunix.sft.dpo.dpo_trainer; print("tunix, jax", jax.__version__)'
echo "now: python -m benchmarks.peers --mode dpo" \
    "--trl-python $folder/trl/bin/python --tunix-python $folder/tunix/bin/python"
