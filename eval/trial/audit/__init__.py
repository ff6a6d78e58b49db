"""The audit: which tests run on a record, and what each of them found."""
