"""Chat models behind one interface: OpenAI-compatible endpoints and local checkpoints, with journal, rate limit and budget."""
