"""Length-adaptive training: sampling of sub-models, the training arguments and the trainer."""
