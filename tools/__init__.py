"""Tools that look at a record: its parameters, and the text that it continues."""
