"""The model: self-contained files that import torch, transformers and each other, so that they can travel to the Hub."""
