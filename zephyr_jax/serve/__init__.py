"""The OpenAI-compatible server and the terminal chat."""
