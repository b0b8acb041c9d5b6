"""Raw dialogues and rated answers in, clean splits and an account of what was left out. Never imports jax."""
