"""Logits of exported folders by torch: `python check_families.py FOLDERS OUT.npz` (needs torch and transformers, 4 or 5).

FOLDERS has a folder with weights and `tokens.npy` per model; OUT has the float32 logits under the names of the folders.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

folders, out = Path(sys.argv[1]), sys.argv[2]
logits = {}
for folder in sorted(folders.iterdir()):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        logits[folder.name] = model(torch.from_numpy(np.load(folder / "tokens.npy")).long()).logits.numpy()
np.savez(out, **logits)
