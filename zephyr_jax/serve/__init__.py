"""An OpenAI-compatible server and the terminal chat."""
