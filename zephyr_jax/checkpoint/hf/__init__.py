"""Hugging Face model folders: config, tokenizer files and safetensors, read and written as shards."""
