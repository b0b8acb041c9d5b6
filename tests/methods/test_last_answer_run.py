"""`sft` with a thinking template and `data.multi_turn: last`, from the command line to an export."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tests.adapter_runs import write_rows
from tests.chat.thinking import THINKING, thinking_tokenizer
from tests.models import resized
from zephyr_jax.cli import main

CHATS: list[dict[str, Any]] = [
    {
        "messages": [
            message
            for number in range(answers)
            for message in (
                {"role": "user", "content": f"Question {number} of {answers}?"},
                {"role": "assistant", "content": f"Answer {number}.", "reasoning_content": f"About {number}."},
            )
        ]
    }
    for answers in (3, 1, 2)
]
COMMAND = (
    "sft --config configs/tiny/sft.yaml --data.multi_turn last --data.max_length 256 --data.row_length 256 --batch.rows 8 "
    "--schedule.max_steps None --schedule.epochs 1 --schedule.evaluate_every 0 --optimizer.warmup_ratio 0 "
    "--report.no_progress_bar --report.num_samples 0"
)


def num_targets(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]]) -> int:
    """Tokens of the last answer after its prompt, through the end token, as transformers renders both."""
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    assert text.startswith(prompt) and text.endswith("<|im_end|>\n")
    lengths = [len(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in (prompt, text.rstrip("\n"))]
    return lengths[1] - lengths[0]


def test_sft_trains_on_every_answer_as_the_last_one(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three conversations are six examples; each answer is a target once, with its reasoning; the count is reported."""
    monkeypatch.chdir(Path(__file__).parents[2])
    tokenizer = thinking_tokenizer()
    model = resized(golden / "families" / "qwen3", tmp_path / "base", len(tokenizer))
    tokenizer.save_pretrained(model)
    template = tmp_path / "thinking.jinja"
    template.write_text(THINKING)
    rows = write_rows(tmp_path / "chats.jsonl", CHATS)
    words = f"{COMMAND} --model.path {model} --data.path {rows} --data.chat_template {template} --output {tmp_path}/run"
    main(words.split())
    output = "".join(capsys.readouterr())
    assert "3 conversations became 6 examples, one per answer (data.multi_turn: last)" in output
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    tokenizer.chat_template = THINKING
    prefixes = [chat["messages"][: end + 1] for chat in CHATS for end in range(1, len(chat["messages"]), 2)]
    first = metrics[0]  # the only step
    assert round(first["targets_per_second"] * first["step_time"]) == sum(
        num_targets(tokenizer, messages) for messages in prefixes
    )
    main(f"export --model.path {tmp_path}/run --output {tmp_path}/hf --dtype float32".split())
    exported = AutoTokenizer.from_pretrained(tmp_path / "hf")
    rendered = exported.apply_chat_template(CHATS[0]["messages"], tokenize=False)
    assert rendered == tokenizer.bos_token + tokenizer.apply_chat_template(CHATS[0]["messages"], tokenize=False)
    stops = json.loads((tmp_path / "hf" / "generation_config.json").read_text())["eos_token_id"]
    assert exported.convert_tokens_to_ids("<|im_end|>") in np.atleast_1d(stops)
