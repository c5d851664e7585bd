"""Models that run in another engine than torch."""
