"""How a run is shown: what is read, what is drawn, one page, one card. Nothing here computes a score."""
