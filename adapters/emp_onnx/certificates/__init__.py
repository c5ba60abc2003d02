"""Certificates: what was done to a model, kept in the file itself, so that it can be checked from there."""

__all__: list[str] = []
