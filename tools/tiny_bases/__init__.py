"""Recipes of the shipped bases and of the scene detector: ``python -m tools.tiny_bases``."""
