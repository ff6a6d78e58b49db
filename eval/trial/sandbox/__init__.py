"""Runs a submission where it sees its code, its inputs and the Python environment only."""
