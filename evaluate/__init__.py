"""Checkpoint -> images -> numbers, each with the conditions it holds under."""
