"""The files of the page that a service shows."""
