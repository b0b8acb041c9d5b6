"""What the feedback commands share: the output folder, models, the estimate before a run, output files and the summary."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from textwrap import shorten

from zephyr_jax.clients.base import ChatModel, ChatRequest
from zephyr_jax.clients.open import LocalOptions, ModelOpener
from zephyr_jax.config.feedback import FeedbackConfig
from zephyr_jax.config.sections import ForwardOptions
from zephyr_jax.data.row_formats import Row
from zephyr_jax.errors import InputError, join_items
from zephyr_jax.feedback.sanitize import sanitize
from zephyr_jax.prepare.raw import REJECTED_FILE
from zephyr_jax.storage.files import create_folder, write_jsonl

_BYTES_PER_TOKEN = 4  # of English text, about
_MAX_REASON_CHARS = 160


@dataclass(frozen=True)
class Estimate:
    """Requests without a response yet, and their tokens and cost."""

    num_requests: int = 0
    prompt_tokens: int = 0
    """About."""
    completion_tokens: int = 0
    """At most."""
    cost_usd: float = 0.0

    def __add__(self, other: "Estimate") -> "Estimate":
        return Estimate(
            self.num_requests + other.num_requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cost_usd + other.cost_usd,
        )

    def __str__(self) -> str:
        cost = f", at most ${self.cost_usd:,.{2 if self.cost_usd >= 1 else 4}f}" if self.cost_usd else ""
        return (
            f"up to {self.num_requests:,} requests: about {self.prompt_tokens:,} prompt tokens, at most "
            f"{self.completion_tokens:,} completion tokens{cost}"
        )


def estimate_requests(model: ChatModel, requests: Iterable[ChatRequest], extra_tokens: int = 0) -> Estimate:
    """The estimate for requests to one model; `extra_tokens`: prompt tokens of each that are not known yet."""
    total = Estimate()
    for request in requests:
        prompt = request.prompt_bytes // _BYTES_PER_TOKEN + extra_tokens
        cost = (prompt * model.price_per_mtok_in + request.max_tokens * model.price_per_mtok_out) / 1e6
        total += Estimate(1, prompt, request.max_tokens, cost)
    return total


class Session:
    """The output folder and the models of one feedback command.

    Args:
        command: Name of the command.
        config: Its settings.
        temperature: For models that set none.
        keep: Keep local weights in memory between calls.

    Raises:
        InputError: The folder cannot be created, or another process uses it.
    """

    def __init__(self, command: str, config: FeedbackConfig, temperature: float, *, keep: bool):
        self.folder = create_folder(config.output)
        local = LocalOptions(
            forward=ForwardOptions(compute_dtype=config.compute_dtype),
            mesh=config.mesh,
            batch_size=config.batch_size,
            chat_template=config.chat_template,
            context_length=config.context_length,
            keep=keep,
        )
        self.models = ModelOpener(command, self.folder, config.endpoint, local, temperature)

    def write_rows(self, rows: Sequence[Row], rejected: Sequence[Row]) -> str:
        """Write train.jsonl and rejected.jsonl.

        Returns:
            A summary: number of rows, reasons of rejected ones, token usage.

        Raises:
            InputError: All rows were rejected.
        """
        write_jsonl(self.folder / REJECTED_FILE, rejected)
        reasons = count_reasons([row["reason"] for row in rejected])
        if not rows:
            raise InputError(
                f"All rows were rejected ({reasons}). {self.folder}/{REJECTED_FILE} has the reason of each; replies are saved."
            )
        write_jsonl(self.folder / "train.jsonl", rows)
        rejections = f"; rejected (see {REJECTED_FILE}): {reasons}" if rejected else ""
        usage = f"; {usage}" if (usage := self.models.usage_summary()) else ""
        return f"{len(rows):,} rows in {self.folder}/train.jsonl{rejections}{usage}"


def count_reasons(reasons: list[str]) -> str:
    """Reasons with their counts. Those that differ only in numbers are counted together, and the first is quoted."""
    kinds = [re.sub(r"\d[\d,.]*", "", reason) for reason in reasons]
    first = dict(zip(reversed(kinds), reversed(reasons), strict=True))
    counts = Counter(kinds).most_common()
    texts = (shorten(sanitize(first[kind]), _MAX_REASON_CHARS, placeholder=" ...") for kind, _ in counts)
    return join_items((f"{count:,} x {text}" for text, (_, count) in zip(texts, counts, strict=True)), 4)
