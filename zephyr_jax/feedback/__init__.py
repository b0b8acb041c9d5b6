"""Feedback by models: dialogues, answers and ratings that people have no part in."""
