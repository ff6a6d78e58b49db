"""Trial: what a record claims, put to the test by running its script."""
