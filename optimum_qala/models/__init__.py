"""The model: files that import torch, transformers and each other only, so that they can travel to the Hub.

`hub` imports the client of the Hub too, which transformers itself needs.
"""
