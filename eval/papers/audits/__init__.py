"""`audit.json` and `AUDIT.md`: the report of an audit, its readers and its writers."""
