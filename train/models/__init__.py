"""MAR and its Diffusion Loss in pure PyTorch: imports nothing but torch and the standard library."""
