"""Black-box experiments on one scorer."""
