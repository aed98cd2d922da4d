"""Metrics: images' features in, a number against a reference out; each a file, all of them listed in table.py."""
