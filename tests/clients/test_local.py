"""A checkpoint as a chat client: journal, context, seeds, and what is refused alone."""

from collections.abc import Callable
from pathlib import Path

import pytest

from zephyr_jax.chat.template_loader import load_template
from zephyr_jax.chat.tokenizer import ChatTokenizer
from zephyr_jax.chat.tokenizer_files import load_tokenizer
from zephyr_jax.clients.base import ChatRequest, ChatResponse
from zephyr_jax.clients.local import LocalClient
from zephyr_jax.clients.responses import collect_responses
from zephyr_jax.config.sections import ForwardOptions, MeshOptions
from zephyr_jax.errors import InputError
from zephyr_jax.generate.load import TextModel, open_text_model

CONTEXT = 96


@pytest.fixture(scope="module")
def text_model(tiny_model: Path) -> TextModel:
    return open_text_model("test", ForwardOptions(str(tiny_model), compute_dtype="float32"), MeshOptions(), 8)


@pytest.fixture
def client(text_model: TextModel, tiny_model: Path, tmp_path: Path) -> Callable[..., LocalClient]:
    """Opens clients that share a journal."""
    tokenizer = load_tokenizer(str(tiny_model))
    chat = ChatTokenizer(tokenizer, load_template("zephyr", tokenizer))

    def make(**options: bool) -> LocalClient:
        return LocalClient(text_model, chat, CONTEXT, tmp_path / "journal", **{"keep": False, **options})

    return make


def request(text: str, max_tokens: int = 4, **settings: object) -> ChatRequest:
    return ChatRequest(
        ({"role": "user", "content": text},), **{"temperature": 1.0, "max_tokens": max_tokens, **settings}
    )


def no_weights(*_: object, **__: object) -> None:
    raise AssertionError("weights are loaded")


def test_responses_are_journaled_in_order_and_generated_once(
    client: Callable[..., LocalClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Duplicates share a response; a second client reads all of them without weights; the nonce asks again."""
    asked = [request("A"), request("B"), request("A"), request("A", nonce=1)]
    counts: list[int] = []
    first = client()
    assert first.unanswered(asked) == [asked[0], asked[1], asked[3]]
    responses = first.complete(asked, counts.append)
    assert responses[0] == responses[2] and counts == sorted(counts) and counts[-1] == len(asked)
    assert responses[0] != responses[3], "the seed comes from the request, with its nonce"
    assert all(response.truncated for response in responses) and first.unanswered(asked) == []
    monkeypatch.setattr(TextModel, "engine", no_weights)
    again = client()
    assert again.complete(asked) == responses and again.unanswered(asked) == []
    with pytest.raises(AssertionError, match="weights are loaded"):
        again.complete([request("C")])


def test_a_prompt_that_fills_the_context_is_refused_alone(client: Callable[..., LocalClient]) -> None:
    """Or loses its beginning, where the command asks for that; a shorter one gets what room there is."""
    long, short = request("blue " * CONTEXT, max_tokens=5), request("A", max_tokens=5)
    refused, answered = client().complete([long, short])
    assert refused.refusal.startswith(f"expected a prompt of less than context={CONTEXT} tokens, got ")
    assert not refused.text and not answered.refusal
    [cut] = client(truncate=True).complete([long])
    assert not cut.refusal and cut.truncated


def test_a_refusal_is_not_journaled(client: Callable[..., LocalClient]) -> None:
    """Another context or template may take the prompt."""
    long = request("blue " * CONTEXT)
    client().complete([long])
    assert client().unanswered([long]) == [long]


def test_a_journal_of_other_weights_or_lines_is_refused(client: Callable[..., LocalClient], tmp_path: Path) -> None:
    client().complete([request("A")])
    lines = (tmp_path / "journal").read_text().splitlines()
    (tmp_path / "journal").write_text("\n".join([lines[0], '{"request": "x", "text": "y", "cut": 1}', lines[1], ""]))
    with pytest.raises(InputError, match="`request` and `text` and a bool in `cut`"):
        client()


class Canned:
    """A client whose responses are given."""

    def __init__(self, *responses: ChatResponse):
        self.responses = list(responses)

    def complete(self, requests: object, progress: Callable[[int], None]) -> list[ChatResponse]:
        progress(len(self.responses))
        return self.responses


def test_refused_and_empty_responses_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    asked = [request("A")] * 3
    given = (ChatResponse("Blue."), ChatResponse(" "), ChatResponse("", refusal="too long"))
    assert collect_responses(Canned(*given), asked, "answers", "model") == list(given)
    logged = capsys.readouterr().err
    assert "model: 1 of 3 answers are empty" in logged
    assert "model refused 1 of 3 requests; first: too long" in logged


def test_refusals_alone_are_an_error_unless_allowed() -> None:
    given = Canned(ChatResponse("", refusal="no"), ChatResponse("", refusal="never"))
    with pytest.raises(InputError, match="judge refused all 2 requests; first refusal: no"):
        collect_responses(given, [request("A")] * 2, "judgments", "judge")
    assert len(collect_responses(given, [request("A")] * 2, "judgments", "judge", allow_all_refused=True)) == 2
