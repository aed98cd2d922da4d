"""The latent store: written in shards, read in any order, checked byte by byte."""
