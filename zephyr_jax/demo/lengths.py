"""How long the demo's texts are in a base's tokens."""

from dataclasses import dataclass

from zephyr_jax.chat.template_loader import load_template
from zephyr_jax.chat.tokenizer import ChatTokenizer
from zephyr_jax.chat.tokenizer_files import load_tokenizer
from zephyr_jax.demo.corpus import conversations


@dataclass(frozen=True)
class Lengths:
    """Tokens that the demo's texts take with a base's tokenizer, with room for a model that talks more than its teacher."""

    conversation: int
    prompt: int
    answer: int

    @property
    def pair(self) -> int:
        """Of a prompt with one answer."""
        return self.prompt + self.answer

    @property
    def of_pairs(self) -> dict[str, int]:
        """As settings of `data`."""
        return {"max_length": self.pair, "max_prompt_length": self.prompt}

    @classmethod
    def of(cls, base: str) -> "Lengths":
        """Measured on some of the teacher's conversations. Raises InputError where the base cannot be read."""
        tokenizer = load_tokenizer(base)
        chat = ChatTokenizer(tokenizer, load_template("zephyr", tokenizer))
        rows = [
            [{"role": str(turn["role"]), "content": turn["content"]} for turn in row["messages"]]
            for row in conversations(0, 300, "train")
        ]
        whole = max(len(chat.encode(chat.template.render(row))) for row in rows)
        said = [turn for row in rows for turn in row]
        asked = max(len(chat.prompt([turn])) for turn in said if turn["role"] == "user")
        told = max(len(tokenizer.encode(turn["content"])) for turn in said if turn["role"] == "assistant")
        return cls(*(-(-int(length) // 32) * 32 for length in (1.1 * whole, asked, 1.4 * told)))
