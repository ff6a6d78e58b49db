"""The checks of `python -m eval check`, by theme."""
