"""From raw network outputs to scores and categories. Sees no pixel."""
