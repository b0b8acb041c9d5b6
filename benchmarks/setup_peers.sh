#!/usr/bin/env bash
# Makes the two environments of benchmarks/peers.py: FOLDER/trl and FOLDER/tunix. PYTHON may name the interpreter (3.11+).
set -euo pipefail

if [ $# -ne 1 ]; then
    echo "usage: benchmarks/setup_peers.sh FOLDER   (outside the repository; makes FOLDER/trl and FOLDER/tunix)" >&2
    exit 2
fi
folder=$1
python=${PYTHON:-python3}

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "$python is older than Python 3.11: set PYTHON to a newer interpreter and rerun" >&2
    exit 1
fi

mkdir -p "$folder"
"$python" -m venv "$folder/trl"
"$folder/trl/bin/pip" install --quiet "torch==2.13.0" --index-url https://download.pytorch.org/whl/cpu
"$folder/trl/bin/pip" install --quiet "trl==1.16.0" "transformers==5.24.0" "datasets==5.2.0" "accelerate==1.15.0"

"$python" -m venv "$folder/tunix"
"$folder/tunix/bin/pip" install --quiet "google-tunix==0.1.7" "jax==0.12.0.1" "flax==0.12.12" "qwix==0.1.8"

"$folder/trl/bin/python" -c 'import torch, trl; print("trl", trl.__version__, "torch", torch.__version__)'
"$folder/tunix/bin/python" -c 'import jax, tunix.sft.dpo.dpo_trainer; print("tunix imports, jax", jax.__version__)'
echo "pass --trl-python $folder/trl/bin/python --tunix-python $folder/tunix/bin/python to python -m benchmarks.peers"
