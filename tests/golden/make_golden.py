"""Make the golden files: numbers computed by torch and transformers that the JAX tests compare with.

This needs torch, which the product does not depend on, and transformers. The outputs lie beside this script
and are kept in the repository, so only someone who changes them runs it. From the repository root:

    python tests/golden/make_golden.py --shared ../shared [--spm tokenizer.model.v1]

trl, where installed, cross-checks the DPO losses. --spm names Mistral's SentencePiece model (the PyPI package
mistral-common ships it as data/tokenizer.model.v1); with it and the package sentencepiece, the chat token ids
are computed a second, independent way. Neither check changes what is written.

Outputs:
    models/<name>/      a tiny random model in Hugging Face form, and golden.npz: tokens, logits, logprobs (a
                        sum of log p(token t | those before) over t = FIRST_SCORED .. T-1) and grad_embed, the
                        gradient of -sum(logprobs) by the input embedding (with tied weights: both its uses)
    stories260k.npz     logits, log-probabilities and greedy text of a small trained model
    dpo.npz             preference losses and the gradients of their means, computed in float64
    schedule.npz        learning rates, one a step from step 0
    optimizer.npz       AdamW and RMSprop trajectories, gradients clipped to global norm 1 first
    zephyr_chat.json    conversations, their Zephyr text, its token ids and the assistant spans
"""

import argparse
import json
import math
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import transformers
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, MistralConfig

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[1]
VOCAB, WIDTH, FFN, BATCH, LENGTH = 96, 32, 48, 2, 24
FIRST_SCORED = 5
WINDOW = 7


# ---- 1. tiny random models ----

CLASSICAL = {"mha", "theta", "window", "llama"}  # these get the older config.json, with rope_theta on top
VARIANTS = {
    "mha": {"num_key_value_heads": 4, "sliding_window": 4096},
    "gqa": {"sliding_window": 4096},
    "mqa": {"num_key_value_heads": 1},
    "window": {"sliding_window": WINDOW},
    "tied": {"tie_word_embeddings": True},
    "theta": {"rope_theta": 1e6, "num_hidden_layers": 3},
    "head_dim": {"head_dim": 16, "rope_theta": 1e5},
    "llama": {"tie_word_embeddings": True},
    "llama_untied": {},
}


def tiny_config(name):
    settings = {
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "intermediate_size": FFN,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }
    if not name.startswith("llama"):
        settings["sliding_window"] = None
    settings.update(VARIANTS[name])
    settings["rope_parameters"] = {"rope_type": "default", "rope_theta": settings.pop("rope_theta", 1e4)}
    config = LlamaConfig if name.startswith("llama") else MistralConfig
    return config(**settings)


def load(source, **settings):
    """The model of a folder or a config: float32, eager attention, inference mode."""
    make = AutoModelForCausalLM.from_pretrained if isinstance(source, Path) else AutoModelForCausalLM.from_config
    return make(source, dtype=torch.float32, attn_implementation="eager", **settings).eval()


def randomize(model, seed):
    """Matrices of deviation 0.2 (logits then have a deviation near 1) and norm weights scattered around 1."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        centre = 1.0 if parameter.ndim == 1 else 0.0
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data.copy_(centre + 0.2 * noise)


def scored_logprobs(logits, tokens, first):
    """Per row, the sum of log p(token t | tokens before t) over t = first .. T-1."""
    every = functional.log_softmax(logits[:, :-1], dim=-1).gather(-1, tokens[:, 1:, None])[..., 0]
    return every[:, first - 1 :].sum(-1)


def make_config_classical(path):
    """Rewrite config.json as transformers 4 wrote it (as in Mistral-7B-v0.1)."""
    config = json.loads(path.read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config["torch_dtype"] = config.pop("dtype")
    if config["head_dim"] == config["hidden_size"] // config["num_attention_heads"]:
        del config["head_dim"]
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def check_window(model, tokens, logits):
    """Query i must see the keys j with i - WINDOW < j <= i: compare with explicit masks and no window."""
    config = MistralConfig(**{**model.config.to_dict(), "sliding_window": None})
    plain = load(config)
    plain.load_state_dict(model.state_dict())
    distance = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)[None, :]

    def masked(keys):
        seen = (distance >= 0) & (distance < keys)
        mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min).expand(BATCH, 1, LENGTH, LENGTH)
        return plain(tokens, attention_mask=mask).logits

    counts = (WINDOW - 1, WINDOW, WINDOW + 1, LENGTH)
    gaps = {keys: (masked(keys) - logits).abs().max().item() for keys in counts}
    print("  window: greatest logit difference by number of keys seen:", gaps)
    assert gaps[WINDOW] < 1e-5, "TRANSFORMERS' EAGER WINDOW IS NOT i - w < j <= i"
    assert all(gap > 0.01 for keys, gap in gaps.items() if keys != WINDOW), "the window check shows nothing"


def make_model(name, seed):
    folder = HERE / "models" / name
    folder.mkdir(parents=True, exist_ok=True)
    model = load(tiny_config(name))
    randomize(model, seed)
    tokens = torch.randint(VOCAB, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1000 + seed))
    logits = model(tokens).logits
    logprobs = scored_logprobs(logits, tokens, FIRST_SCORED)
    (grad_embed,) = torch.autograd.grad(-logprobs.sum(), model.get_input_embeddings().weight)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if name in CLASSICAL:
        make_config_classical(folder / "config.json")
    with torch.no_grad():
        if name == "window":
            check_window(model, tokens, logits)
        again = load(folder)(tokens).logits
        assert torch.equal(again, logits), f"{name}: the saved folder gives other logits"
    save(folder / "golden.npz", tokens=tokens.int(), logits=logits, logprobs=logprobs, grad_embed=grad_embed)
    print(f"  {name}: logits deviation {logits.std():.2f}, logprobs {logprobs.tolist()}")


# ---- 2. the small trained model ----

OPENINGS = [
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park with "
    "her red ball. One day, the ball rolled under a big tree, and she could not see it any more. She "
    "asked her mom to help.",
    "Tom and Sam were good friends. They liked to ride their bikes up the hill and look at the birds. "
    '"Look, a big bird!" said Tom. The bird was sad because it had lost its nest. The boys wanted to be'
    " kind and help the bird.",
    'It was a sunny day and the dog wanted to go for a walk. He ran to the door and said, "Woof, woof!"'
    " His friend Ben put on his hat and they went out. They saw a cat on the wall. The cat did not want"
    " to play with the dog.",
    "The old man had a small boat. Every morning he went to the sea to catch some fish. One day he "
    'found a shiny box in the water. He opened the box and saw a blue stone. "What is this?" he said. '
    "Then the stone began to sing!",
]
STORY_LENGTH, GREEDY_STEPS = 64, 120


def greedy_reference(model, start, steps):
    """Append the likeliest token again and again, uncached; also the least lead of a best over a second."""
    tokens, least_lead = start, math.inf
    for _ in range(steps):
        best = model(tokens, use_cache=False).logits[:, -1].topk(2)
        least_lead = min(least_lead, (best.values[0, 0] - best.values[0, 1]).item())
        tokens = torch.cat([tokens, best.indices[:, :1]], dim=1)
    return tokens, least_lead


@torch.no_grad()
def make_stories(shared):
    folder = shared / "models" / "stories260k"
    model, tokenizer = load(folder), AutoTokenizer.from_pretrained(folder)
    rows = [tokenizer(text).input_ids[:STORY_LENGTH] for text in OPENINGS]
    assert all(row[0] == tokenizer.bos_token_id and len(row) == STORY_LENGTH for row in rows)
    tokens = torch.tensor(rows)
    logits = model(tokens).logits
    logprobs = scored_logprobs(logits, tokens, 1)
    start = torch.tensor([[tokenizer.bos_token_id]])
    greedy, least_lead = greedy_reference(model, start, GREEDY_STEPS)
    cached = model.generate(start, attention_mask=torch.ones_like(start), do_sample=False, max_new_tokens=GREEDY_STEPS)
    assert torch.equal(cached[0], greedy[0, : cached.shape[1]]), "generate() and the argmax loop disagree"
    save(
        HERE / "stories260k.npz",
        tokens=tokens.int(),
        logits=logits,
        logprobs=logprobs,
        greedy=greedy[0].int(),
    )
    print(f"  nats a token {(-logprobs / (STORY_LENGTH - 1)).tolist()}")
    print(
        f"  greedy: generate() stopped after {cached.shape[1] - 1} of {GREEDY_STEPS} tokens, eos "
        f"{(greedy == tokenizer.eos_token_id).sum().item()} times, least lead {least_lead:.4f} logits"
    )
    print("  greedy:", repr(tokenizer.decode(greedy[0])))


# ---- 3. preference losses ----

BETA, SMOOTHING, PAIRS = 0.1, 0.1, 16


def preference_losses(data):
    """One loss a pair, by name. h: how much more than the reference the policy prefers the chosen one."""
    chosen = data["policy_chosen"] - data["reference_chosen"]
    rejected = data["policy_rejected"] - data["reference_rejected"]
    h = chosen - rejected
    h_mean = chosen / data["chosen_count"] - rejected / data["rejected_count"]
    right = -functional.logsigmoid(BETA * h)  # the loss if the label is right
    wrong = -functional.logsigmoid(-BETA * h)  # and if it is wrong
    return {
        "sigmoid": right,
        "sigmoid_smooth": (1 - SMOOTHING) * right + SMOOTHING * wrong,
        "ipo": (h_mean - 1 / (2 * BETA)) ** 2,
        "ipo_sum": (h - 1 / (2 * BETA)) ** 2,
        "hinge": torch.relu(1 - BETA * h),
        "robust": ((1 - SMOOTHING) * right - SMOOTHING * wrong) / (1 - 2 * SMOOTHING),
    }


def random_pairs(seed):
    """Sums near -300. The policy of 12 pairs is near its reference, as in training; of the last 4 not."""
    random = np.random.default_rng(seed)
    data = {}
    for side in ("chosen", "rejected"):
        reference = random.normal(-300, 40, PAIRS)
        policy = reference + random.normal(0, 12, PAIRS)
        policy[12:] = random.normal(-300, 40, 4)
        data[f"policy_{side}"] = policy.astype(np.float32)
        data[f"reference_{side}"] = reference.astype(np.float32)
        data[f"{side}_count"] = random.integers(20, 201, PAIRS).astype(np.int32)
    return data


def trl_loss(trainer_class, name, data, smoothing):
    """TRL's own mean loss: its method, run on stand-ins for the trainer and for a model giving our sums."""
    counts = torch.cat([data["chosen_count"], data["rejected_count"]]).long()
    width = int(counts.max())
    mask = (torch.arange(width + 1)[None] >= 1) & (torch.arange(width + 1)[None] <= counts[:, None])
    sums = torch.cat([data["policy_chosen"], data["policy_rejected"]])
    flat = torch.zeros(2 * PAIRS, width)
    outputs = SimpleNamespace(
        log_probs=sums[:, None] * functional.one_hot(torch.tensor(0), width),
        entropy=flat,
        mean_logits=flat,
        is_top1=flat.bool(),
    )
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[name],
        loss_weights=[1.0],
        beta=BETA,
        label_smoothing=smoothing,
        use_weighting=False,
        _total_train_tokens=0,
        _tp_size=1,
        _metrics={"eval": defaultdict(list)},
    )
    inputs = {
        "input_ids": mask.long(),
        "attention_mask": mask.long(),
        "completion_mask": mask.long(),
        "ref_chosen_logps": data["reference_chosen"],
        "ref_rejected_logps": data["reference_rejected"],
    }
    return trainer_class._compute_loss(trainer, lambda **ignored: outputs, inputs, False)


def check_with_trl(data, sides, losses):
    try:
        import trl
    except ImportError:
        print("  trl is not installed: its cross-check is skipped")
        return
    for name in ("sigmoid", "hinge", "ipo", "robust"):
        theirs = trl_loss(trl.DPOTrainer, name, data, SMOOTHING if name == "robust" else 0.0)
        ours = losses[name].mean()
        their_grads = torch.cat(torch.autograd.grad(theirs, sides))
        our_grads = torch.cat(torch.autograd.grad(ours, sides, retain_graph=True))
        gap = (their_grads - our_grads).abs().max().item()
        assert abs(theirs - ours) < 1e-9 and gap < 1e-9, f"{name}: trl differs"
    print(f"  trl {trl.__version__} agrees on sigmoid, hinge, ipo and robust: mean loss and gradients")


def make_dpo(seed):
    stored = random_pairs(seed)
    data = {name: torch.from_numpy(value).double() for name, value in stored.items()}
    sides = [data["policy_chosen"].requires_grad_(), data["policy_rejected"].requires_grad_()]
    losses = preference_losses(data)
    check_with_trl(data, sides, losses)
    for name, loss in losses.items():
        grads = torch.autograd.grad(loss.mean(), sides, retain_graph=True)
        stored[f"loss_{name}"] = loss.float()
        stored[f"grad_chosen_{name}"], stored[f"grad_rejected_{name}"] = (grad.float() for grad in grads)
        print(f"  {name}: mean loss {loss.mean():.6f}")
    save(HERE / "dpo.npz", beta=np.float32(BETA), label_smoothing=np.float32(SMOOTHING), **stored)


# ---- 4 and 5. schedules and optimizers ----


def learning_rates(kind, peak, total):
    make = getattr(transformers, f"get_{kind}_schedule_with_warmup")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    scheduler = make(optimizer, num_warmup_steps=math.ceil(0.1 * total), num_training_steps=total)
    rates = []
    for _ in range(total):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return np.array(rates)


def make_schedule():
    runs = [(kind, peak, total) for kind in ("cosine", "linear") for peak, total in ((2e-5, 50), (5e-7, 37))]
    save(
        HERE / "schedule.npz",
        **{f"{kind}_{total}": learning_rates(kind, peak, total) for kind, peak, total in runs},
    )


def trajectory(optimizer_class, start, grads, **settings):
    parameter = start.clone().requires_grad_()
    optimizer = optimizer_class([parameter], **settings)
    steps = []
    for grad in grads:
        parameter.grad = grad.clone()
        torch.nn.utils.clip_grad_norm_([parameter], max_norm=1.0)
        optimizer.step()
        steps.append(parameter.detach().clone())
    return torch.stack(steps)


def make_optimizer(seed):
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(3, 4, generator=generator)
    grads = torch.randn(8, 3, 4, generator=generator)
    grads *= torch.tensor([1.0, 0.1, 0.5, 0.02, 3.0, 0.2, 0.05, 1.5])[:, None, None]
    norms = grads.flatten(1).norm(dim=1)
    assert (norms > 1).any() and (norms < 1).any()
    print("  gradient norms:", [f"{norm:.3f}" for norm in norms.tolist()])
    adamw = trajectory(torch.optim.AdamW, start, grads, lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    rmsprop = trajectory(torch.optim.RMSprop, start, grads, lr=1e-2, alpha=0.99, eps=1e-8)
    save(HERE / "optimizer.npz", start=start, grads=grads, adamw=adamw, rmsprop=rmsprop)


# ---- 6. Zephyr chat text ----


def turns(*contents, system=None):
    """Messages of alternating user and assistant contents."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return messages + [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


CONVERSATIONS = {
    "system": turns(
        "What is the boiling point of water?",
        "At sea level it boils at 100 °C.",
        system="You are a terse assistant.",
    ),
    "no_system": turns("Name a colour.", "Blue"),
    "multi_turn": turns(
        "Hi!",
        "Hello! How can I help?",
        "Tell me a joke about  two spaces.",
        " Why did the space\ncross the line?\n\nTo get to the next one. ",
        "Another?",
        "No.",
        system="Be funny, but stop when it is enough.",
    ),
    "unicode": turns(
        "Übersetze «naïve café» ins 日本語 — s'il te plaît 🙏🏽",
        "ナイーブなカフェ ☕️\u00a0👩‍💻 ﬁn… Ω≈ç√ مرحبا",
    ),
    "code": turns(
        "Write a loop that prints <|user|> three times.",
        "```python\nfor i in range(3):\n    print('<|user|>')\n\tpass\n```\n",
    ),
}
ZEPHYR_JINJA = "{% for m in messages %}\n{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token }}\n{% endfor %}"
BOS_ID, EOS, EOS_ID = 1, "</s>", 2


def render(messages):
    """All messages (an empty system one first where there is none), their text and the assistant spans."""
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": ""}, *messages]
    text, spans = "", []
    for message in messages:
        text += f"<|{message['role']}|>\n"
        said = message["content"] + EOS
        if message["role"] == "assistant":
            spans.append([len(text), len(text) + len(said)])
        text += said + "\n"
    return messages, text, spans


def sentencepiece_ids(processor, text):
    """The older tokenizer's way: each piece between </s> marks is encoded alone, with a leading space."""
    ids = [BOS_ID]
    for number, piece in enumerate(text.split(EOS)):
        ids += ([EOS_ID] if number else []) + (processor.encode(piece) if piece else [])
    return ids


def make_chat(shared, spm):
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / "mistral-v0.1")
    processor = None
    if spm:
        import sentencepiece

        processor = sentencepiece.SentencePieceProcessor(model_file=str(spm))
    else:
        print("  no --spm: the ids are not checked by a second method")
    records = []
    for name, messages in CONVERSATIONS.items():
        full, text, spans = render(messages)
        assert text == tokenizer.apply_chat_template(full, chat_template=ZEPHYR_JINJA, tokenize=False)
        ids = tokenizer(text).input_ids
        assert ids[0] == BOS_ID and BOS_ID not in ids[1:] and ids.count(EOS_ID) == len(full)
        assert ids == tokenizer.backend_tokenizer.encode(text).ids
        assert processor is None or ids == sentencepiece_ids(processor, text), f"{name}: SentencePiece gives other ids"
        assert all(text[start:end].endswith(EOS) for start, end in spans)
        records.append({"name": name, "messages": messages, "text": text, "ids": ids, "assistant_spans": spans})
        print(f"  {name}: {len(ids)} ids, {'same' if processor else 'not checked'} by SentencePiece")
    (HERE / "zephyr_chat.json").write_text(json.dumps(records, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


# ---- all of it ----


def save(path, **arrays):
    """Write an .npz and read it back."""
    arrays = {name: a.detach().numpy() if isinstance(a, torch.Tensor) else a for name, a in arrays.items()}
    np.savez_compressed(path, **arrays)
    with np.load(path) as stored:
        assert set(stored.files) == set(arrays)
        for name, array in arrays.items():
            assert np.isfinite(array).all() and np.array_equal(stored[name], array), f"{path}: {name}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="relative to the repository root")
    parser.add_argument("--spm", type=Path, help="Mistral's SentencePiece model, for a check of the chat token ids")
    options = parser.parse_args()
    shared = (REPO / options.shared).resolve()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    print("models")
    for seed, name in enumerate(VARIANTS):
        make_model(name, seed)
    print("stories260k")
    make_stories(shared)
    print("dpo")
    make_dpo(seed=20)
    print("schedule, optimizer")
    make_schedule()
    make_optimizer(seed=30)
    print("chat")
    make_chat(shared, options.spm)


if __name__ == "__main__":
    main()
