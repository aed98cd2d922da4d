"""Sweeps: many samplings of one checkpoint."""
