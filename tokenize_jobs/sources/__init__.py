"""Image sources: what lies where, and the samples in it."""
