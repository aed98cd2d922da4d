"""Sweeps: many samplings of one checkpoint, or many trainings of one recipe."""
