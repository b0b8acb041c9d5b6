"""Model families: each maps a Hugging Face config.json and tensor names to `model.decoder`, in both directions."""
