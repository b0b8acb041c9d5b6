"""`zephyr-jax feedback answers`: several models answer each prompt, for `zephyr-jax feedback rate`."""

from collections.abc import Callable
from functools import partial

from zephyr_jax.clients.base import ChatModel, ChatResponse
from zephyr_jax.config.feedback import AnswersConfig
from zephyr_jax.feedback.answers import Style, Wish, answer_rows, wishes
from zephyr_jax.feedback.estimate import Estimate, estimate
from zephyr_jax.feedback.models import Voices
from zephyr_jax.feedback.principles import check_principles
from zephyr_jax.feedback.seeds import read_seeds
from zephyr_jax.feedback.setup import open_folder, repeated, say, write_rows
from zephyr_jax.progress import progress_bar


def feedback_answers(config: AnswersConfig) -> str:
    """What came of it, in words. Killed, the same command goes on and asks for nothing twice. Raises InputError."""
    check_principles(config.principles)
    found = read_seeds(config.data, config.split, config.limit)
    folder = open_folder(config.output)
    opened = Voices("feedback answers", config, config.temperature, folder, keep=False)
    voices = opened.open_all(config.models)
    each = config.num_answers or len(voices)
    style = Style(each, config.principles, config.max_new_tokens, config.top_p, config.seed, config.send_seed)
    wished = wishes(found.seeds, voices, style)
    ahead = _estimate(voices, wished).words()
    if config.estimate:
        return ahead
    say(ahead)
    with progress_bar("answers", len(wished)) as advance:
        said = _ask(voices, wished, advance)
    rows, aside = answer_rows(wished, said)
    return f"{write_rows(folder, rows, aside)}{repeated(found)}{opened.spent()}"


def _estimate(voices: list[ChatModel], wished: list[Wish]) -> Estimate:
    total = Estimate()
    for voice in voices:
        asks = [wish.ask for wish in wished if wish.voice is voice]
        total += estimate(voice, voice.client.unanswered(asks))
    return total


def _ask(voices: list[ChatModel], wished: list[Wish], done: Callable[[int], None]) -> list[ChatResponse]:
    """All answers, a model after the other, so that one at a time is in memory."""
    said: dict[int, ChatResponse] = {}
    for voice in voices:
        places = [place for place, wish in enumerate(wished) if wish.voice is voice]
        advance = partial(lambda before, count: done(before + count), len(said))
        said |= zip(places, voice.client.complete([wished[place].ask for place in places], advance), strict=True)
    return [said[place] for place in range(len(wished))]


def main(config: AnswersConfig, command: str) -> str:
    """`zephyr-jax feedback answers`."""
    return feedback_answers(config)
