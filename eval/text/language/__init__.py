"""The referee's own language model and the slices of text that it is compared on."""
