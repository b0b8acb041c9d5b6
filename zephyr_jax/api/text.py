"""Answers of a model in memory: `generate_text`."""

from collections.abc import Mapping, Sequence
from typing import Any

from zephyr_jax.api.loading import LoadedModel
from zephyr_jax.chat.message import Message, text_message
from zephyr_jax.config.sampling import TopKSamplingOptions
from zephyr_jax.config.validation import validate
from zephyr_jax.errors import InputError
from zephyr_jax.generate.generate import GeneratedAnswer, answer_conversations, row_prompt
from zephyr_jax.generate.load import text_model
from zephyr_jax.storage.cloud import translate_cloud_errors

type Prompt = str | Sequence[Message] | Mapping[str, Any]
"""A user message, a list of messages, or a row of any format."""


@translate_cloud_errors()
def generate_text(
    model: LoadedModel,
    prompts: Sequence[Prompt],
    sampling: TopKSamplingOptions | None = None,
    *,
    chat_template: str | None = None,
    batch_size: int = 8,
) -> list[GeneratedAnswer]:
    """Generate an answer to every prompt, as `zephyr-jax generate` does.

    An answer does not depend on the other prompts: a sampled one depends on `sampling.seed` and on the index of its prompt.

    Args:
        model: Of `load_model`.
        prompts: User messages, conversations as lists of messages, or rows; an assistant answer at the end is removed.
        sampling: Longest answer, temperature, top-p, top-k and seed; default: greedy, 256 tokens.
        chat_template: As `data.chat_template`; default: the checkpoint's own, and `zephyr` where it has none. `none` continues
            plain text.
        batch_size: Prompts that are decoded together, rounded up to a multiple of the mesh's `data` times `fsdp`.

    Returns:
        An answer for each prompt, in order: `text`, `tokens` (with the stop token) and `ended` (false where the limit cut it).

    Raises:
        InputError: A prompt cannot be used or does not fit with its answer into the model's positions, the template cannot be
            used, or the cache does not fit into memory.
    """
    sampling = sampling or TopKSamplingOptions()
    validate(sampling)
    if isinstance(prompts, str | Mapping) or not prompts:
        raise InputError("prompts: expected a sequence of at least one prompt, such as ['Hello!'].")
    conversations = [_messages(prompt, index) for index, prompt in enumerate(prompts)]
    return answer_conversations(
        text_model(model.opened, batch_size), model.parameters, conversations, sampling, chat_template
    )


def _messages(prompt: Prompt, index: int) -> list[Message]:
    if isinstance(prompt, str):
        return [text_message("user", prompt)]
    row = prompt if isinstance(prompt, Mapping) else {"messages": list(prompt)}
    return row_prompt(row, f"Prompt {index}")
