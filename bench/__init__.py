"""Measurements. Each command is a script: `python bench/NAME.py --help`."""
