"""Training logs as evidence."""
