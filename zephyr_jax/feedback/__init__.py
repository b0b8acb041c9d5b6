"""AI feedback: dialogues, answers and ratings by chat models."""
