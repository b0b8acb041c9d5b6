"""What any version of transformers makes of exported tokenizers: `python check_chat_ids.py cases.json results.json`.

cases.json: [{"folder": ..., "chats": [[messages, add_generation_prompt], ...]}, ...]. Needs neither torch nor this project.
"""

import json
import sys
from pathlib import Path

from transformers import AutoTokenizer, GenerationConfig


def ids_of(case: dict) -> dict:
    """Token ids of each conversation by both ways that programs take, and of a plain text; what the files say of special ids."""
    folder = Path(case["folder"])
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    found: dict = {"template": [], "text": [], "decoded": [], "plain": tokenizer("a b").input_ids}
    for messages, asks in case["chats"]:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks)
        ids = tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=asks)
        ids = ids if isinstance(ids, list) else ids["input_ids"]
        found["template"].append(ids)
        found["text"].append(tokenizer(text, add_special_tokens=False).input_ids)
        found["decoded"].append(tokenizer.decode(ids))
    found["inputs"] = sorted(tokenizer("a").keys())
    found["ids"] = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    if (folder / "generation_config.json").exists():
        settings = GenerationConfig.from_pretrained(str(folder))
        settings.validate(strict=True)
        found["generation"] = settings.to_dict()
    return found


if __name__ == "__main__":
    cases = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps([ids_of(case) for case in cases]))
