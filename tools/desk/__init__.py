"""What `runs` and `sweep` share: reading runs, comparing and drawing them, and starting them."""
