"""The jobs on Ray: fit a tokenizer, turn images into latents."""
