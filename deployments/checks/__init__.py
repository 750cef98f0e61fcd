"""The checks of `bincount doctor --services`: each returns findings, and with a problem its remedy and repair."""
