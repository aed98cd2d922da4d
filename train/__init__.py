"""Latents -> a trained checkpoint."""
