"""`zephyr-jax feedback answers`: answers of several models to each prompt, in the format of openbmb/UltraFeedback."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from zephyr_jax.clients.base import ChatModel, ChatRequest, ChatResponse, Progress, progress_after
from zephyr_jax.config.feedback import AnswersConfig
from zephyr_jax.data.row_formats import Row
from zephyr_jax.feedback.principles import check_principles, sample_principle
from zephyr_jax.feedback.seed_prompts import SeedPrompt, read_seed_prompts
from zephyr_jax.feedback.session import Estimate, Session, estimate_requests
from zephyr_jax.progress import progress_bar
from zephyr_jax.seeded_random import draw, shuffled

logger = logging.getLogger(__name__)

MAX_ANSWER_CHARS = 400_000
"""Longer answers are rejected."""
_MAX_REJECTED_CHARS = 1000


@dataclass(frozen=True)
class PlannedRequest:
    """One answer to request."""

    seed: SeedPrompt
    model: ChatModel
    principle: str
    system: str
    """The principle's wording; empty without principles."""
    request: ChatRequest

    def completion(self, text: str) -> dict[str, str]:
        """The answer as an entry of the row's `completions`."""
        return {
            "model": self.model.name,
            "principle": self.principle,
            "custom_system_prompt": self.system,
            "response": text.strip(),
        }


def main(config: AnswersConfig, command: str = "") -> str:
    """Request the answers and write the rows. Rerun after a kill, it continues and requests nothing twice.

    Returns:
        A summary, or with `config.estimate` the estimate.

    Raises:
        InputError: Bad settings or rows, an endpoint that fails, or an exhausted budget.
    """
    check_principles(config.principles)
    seeds = read_seed_prompts(config.data, config.split, config.limit)
    session = Session("feedback answers", config, config.temperature, keep=False)
    models = session.models.open_all(config.models)
    planned = plan_requests(seeds.prompts, models, config)
    estimate = _estimate(models, planned)
    if config.estimate:
        return str(estimate)
    logger.info("%s", estimate)
    with progress_bar("answers", len(planned)) as advance:
        responses = _complete(models, planned, advance)
    rows, rejected = answer_rows(planned, responses)
    return session.write_rows(rows, rejected) + seeds.note()


def plan_requests(
    seeds: Sequence[SeedPrompt], models: Sequence[ChatModel], config: AnswersConfig
) -> list[PlannedRequest]:
    """All requests. Those of a prompt depend neither on other prompts nor on the order of the models."""
    names, count = [model.name for model in models], config.num_answers or len(models)
    return [
        _plan_request(seed, models[index], config)
        for seed in seeds
        for index in shuffled(names, config.seed, "models", seed.prompt_id)[:count]
    ]


def _plan_request(seed: SeedPrompt, model: ChatModel, config: AnswersConfig) -> PlannedRequest:
    principle, wording = sample_principle(config.principles, config.seed, seed.prompt_id, model.name)
    system = ({"role": "system", "content": wording},) if wording else ()
    number = draw(config.seed, "answer", seed.prompt_id, model.name) % 2**31
    request = ChatRequest(
        (*system, {"role": "user", "content": seed.prompt}),
        model.temperature,
        config.max_new_tokens,
        config.top_p,
        seed=number if config.send_seed else None,
        nonce=0 if config.send_seed else number,  # else all samples of one model would be the same request
    )
    return PlannedRequest(seed, model, principle, wording, request)


def _estimate(models: Sequence[ChatModel], planned: Sequence[PlannedRequest]) -> Estimate:
    requests = {model.name: [plan.request for plan in planned if plan.model is model] for model in models}
    parts = (estimate_requests(model, model.client.unanswered(requests[model.name])) for model in models)
    return sum(parts, Estimate())


def _complete(models: Sequence[ChatModel], planned: Sequence[PlannedRequest], progress: Progress) -> list[ChatResponse]:
    """All responses, model by model, so that one set of weights is in memory at a time."""
    responses: dict[int, ChatResponse] = {}
    for model in models:
        indices = [index for index, plan in enumerate(planned) if plan.model is model]
        before = len(responses)
        answers = model.client.complete([planned[index].request for index in indices], progress_after(before, progress))
        responses |= zip(indices, answers, strict=True)
    return [responses[index] for index in range(len(planned))]


def reject_reason(response: ChatResponse) -> str:
    """Why an answer cannot be used; empty if it can. Truncated answers are kept, as in UltraFeedback."""
    if response.refusal:
        return f"refused: {response.refusal}"
    if not response.text.strip():
        return "empty"
    if len(response.text) > MAX_ANSWER_CHARS:
        return f"{len(response.text):,} characters, at most {MAX_ANSWER_CHARS:,} allowed"
    return ""


def answer_rows(planned: Sequence[PlannedRequest], responses: Sequence[ChatResponse]) -> tuple[list[Row], list[Row]]:
    """Rows of prompts with at least one answer, and the rejected answers with their reasons."""
    rows: dict[str, Row] = {}
    rejected: list[Row] = []
    for plan, response in zip(planned, responses, strict=True):
        seed = plan.seed
        if reason := reject_reason(response):
            completion = plan.completion(response.text)
            completion["response"] = completion["response"][:_MAX_REJECTED_CHARS]
            rejected.append({"prompt_id": seed.prompt_id, "instruction": seed.prompt, "reason": reason, **completion})
            continue
        row = rows.setdefault(
            seed.prompt_id,
            {
                "source": seed.source,
                "instruction": seed.prompt,
                "prompt_id": seed.prompt_id,
                "models": [],
                "completions": [],
            },
        )
        row["models"].append(plan.model.name)
        row["completions"].append(plan.completion(response.text))
    return list(rows.values()), rejected
