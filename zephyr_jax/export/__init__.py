"""Hugging Face export, its model card, and the lineage of a run or an export."""
