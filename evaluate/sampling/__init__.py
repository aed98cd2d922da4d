"""A model -> images: orders, noise, the sampler and the generator."""
