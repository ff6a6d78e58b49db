"""Asks a record's script for scores and holds them against the claim."""
