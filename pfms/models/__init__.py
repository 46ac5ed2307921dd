"""Weights: how an upload is checked, and where it is kept."""
