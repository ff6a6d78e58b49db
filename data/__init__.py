"""Corpora to tokenizer to shards: `python -m data --help`."""
