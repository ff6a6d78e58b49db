"""N-gram mixing: its scores, ablated, and its speed; bench/ngram.py is the command."""
