"""Smaller models made of a trained one: fewer layers, fewer tokens in the vocabulary."""
