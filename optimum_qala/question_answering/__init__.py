"""Question answering: records, windows, answers, scores. Import from the modules of this folder."""
