"""The text that was scored: shards, bytes, and where the environment holds a copy of it."""
