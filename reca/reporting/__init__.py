"""The report of a run: one page, one card, one overview image. No score is computed here."""
