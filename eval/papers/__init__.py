"""Papers: what a record claims, read from its files. Nothing here runs a submission."""
