"""Hugging Face models, built stage by stage on the meta device; weights as safetensors."""
