"""dSFT: supervised fine-tuning on conversations (arXiv 2310.16944, section 3)."""

from zephyr_jax.batch import TokenBatch
from zephyr_jax.config.training import SftConfig
from zephyr_jax.data.segments import CONVERSATION
from zephyr_jax.methods.base import Curve, Method, Options
from zephyr_jax.objective.sft import sft_loss


def _curves(options: Options) -> tuple[Curve, ...]:
    return (Curve(title="Loss", unit="nats per target token", metrics=(("loss", ""),)),)


SFT = Method(
    name="sft",
    title="dSFT",
    description="supervised fine-tuning on conversations (dSFT)",
    config=SftConfig,
    examples=CONVERSATION,
    batch=TokenBatch,
    loss=sft_loss,
    curves=_curves,
    metric_titles={"loss": "loss"},
    inherited_settings=("data.targets", "data.multi_turn"),
)
