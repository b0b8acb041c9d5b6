"""Chat templates and tokenizers: messages to token ids with a mask of the assistant's tokens. Never imports jax."""
