"""Chat templates with the structures of current model families, written for tests: each is short and shows one of them."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from tests.tokenizers import ASSETS
from zephyr_jax.chat.tokenizer import ChatTokenizer, load_chat_tokenizer
from zephyr_jax.chat.tokenizer_files import load_tokenizer

_CALLS = (
    "{% if message.tool_calls %}{% for call in message.tool_calls %}"
    "<|call|>{{ call.function.name }} {{ call.function.arguments | tojson }}{% endfor %}{% endif %}"
)
_EMPTY_BLOCK = (
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
THINKING = (
    "{% if tools %}<|im_start|>system\ntools: {{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% set ns = namespace(last_user=-1) %}"
    "{% for message in messages %}{% if message.role == 'user' %}{% set ns.last_user = loop.index0 %}{% endif %}{% endfor %}"
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %}"
    "<|im_start|>assistant\n"
    "{% if loop.index0 > ns.last_user %}"
    "{% if loop.last or message.reasoning_content %}"
    "<think>\n{{ message.reasoning_content | default('') | trim }}\n</think>\n\n"
    "{% endif %}{% endif %}"
    "{{ message.content.split('</think>') | last | trim }}" + _CALLS + "<|im_end|>\n"
    "{% elif message.role == 'tool' %}<|im_start|>user\n<result>{{ message.content }}</result><|im_end|>\n"
    "{% else %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n" + _EMPTY_BLOCK
)
"""Reasoning of the last turn only, an empty think block where it has none, in the generation prompt on request (Qwen3).

Reasoning in the content of an answer is removed."""
ALWAYS_THINKS = THINKING.replace(_EMPTY_BLOCK, "<think>\n{% endif %}")
"""The generation prompt opens the reasoning (DeepSeek R1, Qwen3 Thinking)."""
GEMMA_LIKE = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for message in messages %}{% set role = 'model' if message.role == 'assistant' else message.role %}"
    "{{ '<start_of_turn>' + role + '\n' + message.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
"""Roles user and model, no system message, trimmed contents (Gemma 2)."""
MARKS = ("<|im_start|>", "<|im_end|>", "<|call|>", "<think>", "</think>", "<start_of_turn>", "<end_of_turn>")
"""Special tokens of these templates."""

CHAT: list[dict[str, Any]] = [
    {"role": "user", "content": "Name a color."},
    {"role": "assistant", "content": "Blue", "reasoning_content": "The sky."},
    {"role": "user", "content": "Another?"},
    {"role": "assistant", "content": " Red. ", "reasoning_content": "A rose."},
]
PLAIN: list[dict[str, Any]] = [{"role": message["role"], "content": message["content"]} for message in CHAT]


def thinking_tokenizer() -> PreTrainedTokenizerBase:
    """The demo's tokenizer with the special tokens of these templates."""
    tokenizer = load_tokenizer(str(ASSETS))
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "extra_special_tokens": list(MARKS)})
    return tokenizer


def chat_with(folder: Path, source: str, **settings: Any) -> ChatTokenizer:
    """That tokenizer with a template of this source; settings as `load_chat_tokenizer` takes them."""
    path = folder / "own.jinja"
    path.write_text(source)
    return load_chat_tokenizer(str(path), thinking_tokenizer(), **settings)
