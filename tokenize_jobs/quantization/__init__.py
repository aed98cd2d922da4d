"""Codes <-> vectors: what tokenizers quantise by and models read codes by. Imports torch alone."""
