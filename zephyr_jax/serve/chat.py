"""`zephyr-jax chat`: a conversation in the terminal."""

import sys
from collections.abc import Generator

from zephyr_jax.chat.message import Message, SkippedRow
from zephyr_jax.config.models import ChatConfig
from zephyr_jax.errors import escape_control_chars, terminal_text
from zephyr_jax.generate.engine import Engine, Request
from zephyr_jax.generate.load import Found, find_speaker
from zephyr_jax.generate.text_stream import TextStream

_HELP = "/reset forgets the conversation, /system TEXT sets the system message, /quit or Ctrl-D ends; Ctrl-C cuts an answer."


class Conversation:
    """What has been said, and how an answer is made to it."""

    def __init__(self, config: ChatConfig, found: Found):
        self._config, self._tokenizer = config, found.chat_tokenizer(config.chat_template)
        self._found = found.speaking(self._tokenizer)
        self._context = found.context()
        self._engine: Engine = found.engine(self._context)
        self._system, self._said, self._answers = config.system, list[Message](), 0

    def reset(self) -> None:
        """Forget everything but the system message."""
        self._said = []

    def set_system(self, text: str) -> None:
        """Another system message, and a new conversation."""
        self._system = text or None
        self.reset()

    def answer(self, text: str) -> Generator[str]:
        """Say something; the answer in pieces. It becomes part of the conversation, also when it is cut short.

        Raises SkippedRow for what cannot be said, or when the conversation has become too long.
        """
        config, said = self._config, [*self._said, {"role": "user", "content": text}]
        system = [{"role": "system", "content": self._system}] if self._system else []
        prompt = self._tokenizer.prompt([*system, *said])
        room = self._context - len(prompt)
        if room < 1:
            raise SkippedRow(
                f"the conversation has {len(prompt)} tokens, and {self._context} is all there is: /reset it"
            )
        request = Request(
            prompt, min(config.max_new_tokens, room), self._found.stops, config.temperature, config.top_p, config.top_k,
            (config.seed, self._answers),
        )  # fmt: skip
        self._answers += 1
        number, parts = self._engine.submit(request), list[str]()
        stream = TextStream(self._found.tokenizer, self._found.stops)
        try:
            for piece in self._engine.run():
                parts.append(stream.feed(piece.tokens, last=bool(piece.end)))
                yield parts[-1]
        finally:
            self._engine.cancel(number)
            self._said = [*said, {"role": "assistant", "content": "".join(parts)}]


def chat(config: ChatConfig) -> None:
    """Read lines and answer them until the end of input. Raises InputError."""
    conversation = Conversation(config, find_speaker("chat", config.model, config.mesh, 1))
    print(_HELP, file=sys.stderr)
    while (line := _line()) is not None:
        word, _, rest = line.strip().partition(" ")
        if word == "/quit":
            return
        if word == "/reset":
            conversation.reset()
        elif word == "/system":
            conversation.set_system(rest.strip())
        elif word.startswith("/"):
            print(_HELP, file=sys.stderr)
        elif line.strip():
            _show(conversation, line.strip())


def _line() -> str | None:
    """What the user types, or None at the end."""
    try:
        return input("> " if sys.stdin.isatty() else "")
    except (EOFError, KeyboardInterrupt):
        return None


def _show(conversation: Conversation, text: str) -> None:
    answer = conversation.answer(text)
    try:
        for part in answer:
            print(terminal_text(part), end="", flush=True)
        print()
    except KeyboardInterrupt:
        answer.close()
        print(" ...")
    except SkippedRow as error:
        print(f"That cannot be answered: {escape_control_chars(str(error))}.", file=sys.stderr)


def main(config: ChatConfig, command: str) -> None:
    """`zephyr-jax chat`."""
    chat(config)
