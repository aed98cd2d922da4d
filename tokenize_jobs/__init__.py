"""Images -> cached continuous latents."""
