"""Make the golden files of LoRA and of quantized weights: numbers computed by torch, peft and bitsandbytes.

This needs the environment `trl` of benchmarks/setup_peers.sh; the product does not depend on it. The outputs are kept
in the repository, so only someone who changes them runs it. From the repository root:

    PYTHONPATH=. TRL_ENVIRONMENT/bin/python tests/golden/make_lora_golden.py

Outputs, for each case of CASES, in lora/<case>/:
    adapter_model.safetensors, adapter_config.json   a random adapter as peft saves it, with A and B different from zero
    golden.npz          of the model with that adapter, in float32; a segment is one row of torch's, without padding:
        tokens, sizes           token ids of all segments end to end, and their lengths
        logits                  of all tokens, end to end
        logprobs, reference     per segment, the sum of log p(token t | those before) over t = PROMPT .. end, with the adapter and
                                with peft's adapter disabled
        loss_sft, loss_dpo      nats per target; mean sigmoid loss over pairs (segments 2k and 2k + 1) with BETA
        grad_<loss>.<name>      gradient of the loss by A or B; names are peft's, without its prefix
        after_<loss>.<name>     A or B after STEPS steps of torch.optim.AdamW on that loss
        merged.<name>           adapted weights after merge_and_unload, in Hugging Face's names
nf4.npz: weights [outputs, inputs], and codes and scales of bitsandbytes' quantize_4bit, see make_nf4.
"""

import json
import shutil

import bitsandbytes
import numpy as np
import peft
import torch
import transformers
from torch.nn import functional

from tests.golden.make_golden import HERE, load, save

OUT = HERE / "lora"
PROMPT, BETA = 3, 0.1
SIZES = (11, 14, 9, 16, 13, 10)
STEPS, LEARNING_RATE, WEIGHT_DECAY = 3, 2e-3, 0.01
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CASES = {
    "llama": {"base": "llama_untied", "r": 4, "lora_alpha": 8, "target_modules": ALL},
    "window": {"base": "window", "r": 4, "lora_alpha": 8, "target_modules": ALL},
    "tied": {"base": "tied", "r": 4, "lora_alpha": 8, "target_modules": ALL},
    "rslora": {
        "base": "window",
        "r": 3,
        "lora_alpha": 5,
        "target_modules": ("q_proj", "v_proj", "down_proj"),
        "use_rslora": True,
    },
}
"""The window of `window` is 7 tokens, fewer than a segment has."""


# ---- 1. adapters ----


def adapted_model(base, seed, **settings):
    """The base with an adapter of random A and B; deviations keep the adapter's part near a third of the weights'."""
    settings["target_modules"] = list(settings["target_modules"])
    config = peft.LoraConfig(lora_dropout=0.0, bias="none", task_type="CAUSAL_LM", **settings)
    model = peft.get_peft_model(load(HERE / "models" / base), config).eval()
    model.peft_config["default"].base_model_name_or_path = f"tests/golden/models/{base}"
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapter(model).values():
        parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def adapter(model):
    """A and B by their names in adapter_model.safetensors, without the prefix of all of them."""
    prefix = "base_model.model."
    return {
        name.removeprefix(prefix).replace(".default.weight", ".weight"): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def segment_logprobs(model, segments):
    """The sum of the targets' log-probs of each segment."""
    sums = []
    for tokens in segments:
        logprobs = functional.log_softmax(model(tokens[None]).logits[0, :-1], dim=-1)
        sums.append(logprobs.gather(-1, tokens[1:, None])[PROMPT - 1 :].sum())
    return torch.stack(sums)


def sft_loss(logprobs, reference):
    """Nats per target token."""
    return -logprobs.sum() / sum(size - PROMPT for size in SIZES)


def dpo_loss(logprobs, reference):
    """-log sigmoid(beta h), the mean over pairs."""
    ratio = logprobs - reference
    return -functional.logsigmoid(BETA * (ratio[0::2] - ratio[1::2])).mean()


def trajectory(model, loss, segments, reference):
    """A and B after STEPS steps; the model has its first values again afterwards."""
    parameters = adapter(model)
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    optimizer = torch.optim.AdamW(parameters.values(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(segment_logprobs(model, segments), reference).backward()
        optimizer.step()
    after = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        parameter.data.copy_(start[name])
        parameter.grad = None
    return after


def save_adapter(model, folder):
    """The two files that peft needs; its order of target_modules, a set, differs from run to run."""
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    config = json.loads((folder / "adapter_config.json").read_text())
    config["target_modules"].sort()
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / "adapter_model.safetensors").chmod(0o644)


def make_case(name, seed, base, **settings):
    folder = OUT / name
    model = adapted_model(base, seed, **settings)
    save_adapter(model, folder)
    generator = torch.Generator().manual_seed(1000 + seed)
    segments = [torch.randint(3, 96, (size,), generator=generator) for size in SIZES]
    with torch.no_grad():
        logits = torch.cat([model(tokens[None]).logits[0] for tokens in segments])
        with model.disable_adapter():
            reference = segment_logprobs(model, segments)
        logprobs = segment_logprobs(model, segments)
    arrays = {
        "tokens": torch.cat(segments).int(),
        "sizes": np.array(SIZES, np.int32),
        "logits": logits,
        "logprobs": logprobs,
        "reference": reference,
    }
    for kind, loss in (("sft", sft_loss), ("dpo", dpo_loss)):
        value = loss(segment_logprobs(model, segments), reference)
        grads = torch.autograd.grad(value, list(adapter(model).values()))
        assert all((grad.abs() > 0).all() for grad in grads), f"{name}: a gradient is zero"
        arrays[f"loss_{kind}"] = value
        arrays |= {f"grad_{kind}.{key}": grad for key, grad in zip(adapter(model), grads, strict=True)}
        arrays |= {f"after_{kind}.{key}": x for key, x in trajectory(model, loss, segments, reference).items()}
        print(f"  {name}: {kind} loss {value:.6f}, largest gradient {max(grad.abs().max() for grad in grads):.3f}")
    adapted = {key.partition(".lora_")[0] + ".weight" for key in adapter(model)}
    merged = model.merge_and_unload()
    gap = (torch.cat([merged(tokens[None]).logits[0] for tokens in segments]) - logits).abs().max().item()
    assert gap < 1e-4, f"{name}: merged weights give other logits"
    arrays |= {f"merged.{key}": value for key, value in merged.state_dict().items() if key in adapted}
    save(folder / "golden.npz", **arrays)
    print(
        f"  {name}: merged logits differ by {gap:.1e}, golden.npz has {(folder / 'golden.npz').stat().st_size:,} bytes"
    )


# ---- 2. nf4 ----

BLOCK = 64


def edge_weight():
    """One block in each row: values half-way between two of the table and their neighbors, zeros, extremes."""
    table = bitsandbytes.functional.get_4bit_type("nf4", device="cpu")
    halfway = (table[1:] + table[:-1]) / 2
    infinity = torch.full_like(halfway, torch.inf)
    values = torch.cat([halfway, torch.nextafter(halfway, infinity), torch.nextafter(halfway, -infinity), table])
    ties = torch.cat([torch.ones(1), values, torch.zeros(BLOCK - len(values) - 1)])
    random = 0.02 * torch.randn(BLOCK, generator=torch.Generator().manual_seed(51))
    one_huge, one_negative = random.clone(), random.clone()
    one_huge[17], one_negative[40] = 1e30, -3.0
    rows = {
        "ties": ties,
        "ties of a larger scale": 4 * ties,  # a power of two, so that they stay half-way
        "ties of a rounded scale": 0.3 * ties,  # x / scale and x * (1 / scale) have other codes here
        "zeros": torch.zeros(BLOCK),
        "one huge value": one_huge,
        "largest magnitude negative": one_negative,
        "one value": torch.full((BLOCK,), -0.75),
        "denormals beside a normal value": torch.where(torch.arange(BLOCK) == 3, random, 1e-40 * random),
        "small normal values": 1e-30 * random,
        "denormals": 1e-39 * random,
    }
    return torch.stack(list(rows.values()))


def make_nf4(seed):
    """Codes uint8 [outputs, inputs], scales float32 [outputs, blocks] and bitsandbytes' dequantized weights."""
    generator = torch.Generator().manual_seed(seed)
    weights = {
        "random": (0.02 * torch.randn(24, 256, generator=generator), BLOCK),
        "large_blocks": (0.02 * torch.randn(8, 256, generator=generator), 128),
        "edge": (edge_weight(), BLOCK),
    }
    arrays = {}
    for name, (weight, block) in weights.items():
        packed, state = bitsandbytes.functional.quantize_4bit(weight, blocksize=block, quant_type="nf4")
        dense = bitsandbytes.functional.dequantize_4bit(packed, state)
        codes = torch.stack([packed >> 4, packed & 15], dim=-1).reshape(
            weight.shape
        )  # the first code is the upper half
        scales = state.absmax.reshape(len(weight), -1)
        looked_up = (state.code[codes.long()].reshape(*scales.shape, block) * scales[..., None]).reshape(weight.shape)
        assert torch.equal(looked_up, dense), f"{name}: the codes are unpacked in another order"
        arrays |= {f"{name}.weight": weight, f"{name}.codes": codes, f"{name}.scales": scales, f"{name}.dense": dense}
    save(HERE / "nf4.npz", table=state.code, **arrays)
    print(f"  nf4.npz has {(HERE / 'nf4.npz').stat().st_size:,} bytes")


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    print(f"torch {torch.__version__}, peft {peft.__version__}, bitsandbytes {bitsandbytes.__version__}")
    for seed, (name, settings) in enumerate(CASES.items(), 40):
        make_case(name, seed, **settings)
    make_nf4(seed=50)


if __name__ == "__main__":
    main()
