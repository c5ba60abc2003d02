"""The papers' tables, made again: ``python -m tests.reproduce <name> [--write docs/reproductions.md]``."""
