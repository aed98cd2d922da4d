"""Continuous tokenizers, one file a kind: images <-> moments of a latent posterior."""
