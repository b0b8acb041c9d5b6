"""Text from a model: a jitted prefill and decode loop over a sharded KV cache."""
