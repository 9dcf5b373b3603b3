"""How the shipped base weights were made; a one-off whose results stand in ``data/bases/``."""
