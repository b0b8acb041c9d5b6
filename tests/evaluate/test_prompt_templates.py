"""Chat templates that training refuses, and that still write prompts."""

from pathlib import Path

import pytest

from zephyr_jax.chat.template_loader import load_template
from zephyr_jax.config.sections import MeshOptions, ModelOptions
from zephyr_jax.errors import InputError
from zephyr_jax.generate.load import open_text_model

UNFIT = {
    "earlier answers without their thoughts": "{% for m in messages %}{{ m.role }}: "
    "{{ m.content if loop.last or m.role == 'user' else m.content.split(' ')[-1] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}",
    "no end of an answer": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}",
    "another header in prompts": "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant, think: {% endif %}",
}


@pytest.mark.parametrize("source", UNFIT.values(), ids=UNFIT)
def test_generation_accepts_what_training_refuses(tiny_model: Path, tmp_path: Path, source: str) -> None:
    """`generate`, `serve`, `chat` and the benchmarks read templates in this one way."""
    path = tmp_path / "unfit.jinja"
    path.write_text(source)
    found = open_text_model("serve", ModelOptions(path=str(tiny_model)), MeshOptions(), 1)
    with pytest.raises(InputError, match="unfit.jinja`"):
        load_template(str(path), found.tokenizer)
    prompt = found.chat_tokenizer(str(path)).prompt([{"role": "user", "content": "Hi"}])
    assert found.tokenizer.decode(prompt).endswith(": ")
