"""The page of an evaluation: one self-contained file."""
