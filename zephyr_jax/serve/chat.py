"""`zephyr-jax chat`: a conversation in the terminal."""

import sys
from collections.abc import Generator

from zephyr_jax.chat.message import Message, SkippedRow
from zephyr_jax.chat.reasoning import close_block
from zephyr_jax.config.models import ChatConfig
from zephyr_jax.config.sampling import SamplingParams
from zephyr_jax.errors import escape_control_chars, terminal_text
from zephyr_jax.generate.engine import Engine, GenerationRequest
from zephyr_jax.generate.load import TextModel, open_text_model
from zephyr_jax.generate.text_stream import TextStream

_HELP = "/reset clears the conversation, /system TEXT sets the system message, /quit or Ctrl-D exits; Ctrl-C cuts an answer."


class ChatSession:
    """The messages of a conversation and the engine that answers them."""

    def __init__(self, config: ChatConfig, model: TextModel):
        self._config, self._tokenizer = config, model.chat_tokenizer(config.chat_template, config.template_args)
        self._model = model.with_chat_stops(self._tokenizer)
        self._context = model.context_length()
        self._engine: Engine = model.engine(self._context)
        self._system, self._messages, self._num_answers = config.system, list[Message](), 0

    def reset(self) -> None:
        """Clear the conversation but for the system message."""
        self._messages = []

    def set_system(self, text: str) -> None:
        """Set the system message and clear the session."""
        self._system = text or None
        self.reset()

    def answer(self, text: str) -> Generator[str]:
        """Answer a message, yielding new text. Message and answer join the conversation, also if the generator is closed early.

        Raises SkippedRow for a message that cannot be rendered, and for a conversation beyond the context.
        """
        config, messages = self._config, [*self._messages, {"role": "user", "content": text}]
        system = [{"role": "system", "content": self._system}] if self._system else []
        prompt = self._tokenizer.prompt([*system, *messages])
        room = self._context - len(prompt)
        if room < 1:
            raise SkippedRow(
                f"expected a conversation of less than {self._context} tokens, got {len(prompt)}: clear it with /reset"
            )
        seed = (config.seed, self._num_answers)
        sampling = SamplingParams(config.temperature, config.top_p, config.top_k, seed)
        request = GenerationRequest(prompt, min(config.max_new_tokens, room), self._model.stop_ids, sampling)
        self._num_answers += 1
        request_id, parts = self._engine.submit(request), list[str]()
        stream = TextStream(self._model.tokenizer, self._model.stop_ids)
        try:
            for output in self._engine.run():
                parts.append(stream.feed(output.tokens, last=bool(output.finish_reason)))
                yield parts[-1]
        finally:
            self._engine.cancel(request_id)
            content = close_block("".join(parts), self._tokenizer.template.opens_reasoning)
            self._messages = [*messages, {"role": "assistant", "content": content}]


def chat(config: ChatConfig) -> None:
    """Answer lines of standard input until its end. Raises InputError."""
    session = ChatSession(config, open_text_model("chat", config.model, config.mesh, 1))
    print(_HELP, file=sys.stderr)
    while (line := _read_line()) is not None:
        word, _, rest = line.strip().partition(" ")
        if word == "/quit":
            return
        if word == "/reset":
            session.reset()
        elif word == "/system":
            session.set_system(rest.strip())
            print("system message set; conversation cleared", file=sys.stderr)
        elif word.startswith("/"):
            print(_HELP, file=sys.stderr)
        elif line.strip():
            _print_answer(session, line.strip())


def _read_line() -> str | None:
    """The next line of input, or None at its end."""
    try:
        return input("> " if sys.stdin.isatty() else "")
    except (EOFError, KeyboardInterrupt):
        return None


def _print_answer(session: ChatSession, text: str) -> None:
    answer = session.answer(text)
    try:
        for part in answer:
            print(terminal_text(part), end="", flush=True)
        print()
    except KeyboardInterrupt:
        answer.close()
        print(" ...")
    except SkippedRow as error:
        print(f"This message cannot be answered: {escape_control_chars(str(error))}.", file=sys.stderr)


def main(config: ChatConfig, command: str) -> None:
    """`zephyr-jax chat`."""
    chat(config)
