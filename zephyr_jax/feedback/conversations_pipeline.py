"""`zephyr-jax feedback conversations`: dialogues from seed prompts, for `zephyr-jax sft`."""

from zephyr_jax.config.feedback import ConversationsConfig
from zephyr_jax.feedback.dialogue import Manner, estimate_play, play
from zephyr_jax.feedback.models import Voices
from zephyr_jax.feedback.seeds import read_seeds
from zephyr_jax.feedback.setup import open_folder, reasons, repeated, say, write_rows
from zephyr_jax.progress import progress_bar


def feedback_conversations(config: ConversationsConfig) -> str:
    """What came of it, in words. Killed, the same command goes on and asks for nothing twice. Raises InputError."""
    found = read_seeds(config.data, config.split, config.limit)
    folder = open_folder(config.output)
    voices = Voices("feedback conversations", config, config.temperature, folder, keep=True)
    assistant = voices.open(config.assistant)
    person = voices.open(config.user) if config.user else assistant
    manner = Manner(
        config.turns, config.user_max_new_tokens, config.max_new_tokens, config.top_p,
        config.seed if config.send_seed else None, config.system,
    )  # fmt: skip
    ahead = estimate_play(found.seeds, person, assistant, manner).words()
    if config.estimate:
        return ahead
    say(ahead)
    with progress_bar("answers", len(found.seeds) * manner.turns) as advance:
        talks = play(found.seeds, person, assistant, manner, advance)
    rows = [talk.row() for talk in talks if talk.whole]
    aside = [{**talk.row(), "reason": talk.ended, "said": talk.last[:1000]} for talk in talks if not talk.whole]
    written = write_rows(folder, rows, aside)
    answers = sum(len(talk.messages) // 2 for talk in talks)
    early = reasons([talk.ended for talk in talks if talk.whole and talk.ended])
    told = f"; ended before turn {config.turns}: {early}" if early else ""
    return f"{written}; {answers:,} answers{told}{repeated(found)}{voices.spent()}"


def main(config: ConversationsConfig, command: str) -> str:
    """`zephyr-jax feedback conversations`."""
    return feedback_conversations(config)
