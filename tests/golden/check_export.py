"""Logits of an exported folder by torch: `python check_export.py FOLDER TOKENS.npy OUT.npy` (needs torch, transformers)."""

import sys

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, tokens, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(folder)
assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}], add_generation_prompt=True)
with torch.no_grad():
    np.save(out, model(torch.from_numpy(np.load(tokens)).long()).logits.numpy())
