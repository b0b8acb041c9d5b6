"""Generation: a jitted prefill and decode loop over a sharded KV cache, with continuous batching."""
