"""Count the items in warehouse bins from photos."""
