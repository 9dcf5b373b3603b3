"""How the shipped bases and the scene detector are made: ``python -m tools.tiny_bases``."""
