"""One module for each command of `python -m eval`: its arguments and its flow."""
