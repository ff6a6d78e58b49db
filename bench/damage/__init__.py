"""Damaged files and killed runs; bench/faults.py is the command."""
