"""Text: the bytes that a score is divided by, and the language that a scorer is tested with."""
