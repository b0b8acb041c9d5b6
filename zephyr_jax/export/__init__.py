"""Export to a Hugging Face folder, its model card, and the lineage of a run or an export."""
