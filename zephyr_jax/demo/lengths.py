"""Sequence lengths of the demo's texts in tokens of a base model's tokenizer."""

from dataclasses import dataclass

from zephyr_jax.chat.template_loader import load_template
from zephyr_jax.chat.tokenizer import ChatTokenizer
from zephyr_jax.chat.tokenizer_files import load_tokenizer
from zephyr_jax.demo.corpus import conversations


@dataclass(frozen=True)
class SequenceLengths:
    """Maximum lengths in tokens, with room for a model that is more verbose than its teacher."""

    conversation: int
    prompt: int
    answer: int

    @property
    def pair(self) -> int:
        """Tokens of a prompt with one answer."""
        return self.prompt + self.answer

    @property
    def of_pairs(self) -> dict[str, int]:
        """Settings of the `data` section for preference pairs."""
        return {"max_length": self.pair, "max_prompt_length": self.prompt}

    @classmethod
    def of(cls, base: str) -> "SequenceLengths":
        """Measure 300 teacher conversations; lengths are rounded up to 32. Raises InputError for an unreadable base."""
        tokenizer = load_tokenizer(base)
        chat = ChatTokenizer(tokenizer, load_template("zephyr", tokenizer))
        chats = [
            [{"role": str(turn["role"]), "content": turn["content"]} for turn in row["messages"]]
            for row in conversations(0, 300, "train")
        ]
        turns = [turn for messages in chats for turn in messages]
        conversation = max(len(chat.encode(chat.template.render(messages))) for messages in chats)
        prompt = max(len(chat.prompt([turn])) for turn in turns if turn["role"] == "user")
        answer = max(len(tokenizer.encode(turn["content"])) for turn in turns if turn["role"] == "assistant")
        return cls(*(-(-int(length) // 32) * 32 for length in (1.1 * conversation, prompt, 1.4 * answer)))
