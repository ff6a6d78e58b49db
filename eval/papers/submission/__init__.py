"""`submission.json`: its schema, and how ours and public ones are read."""
