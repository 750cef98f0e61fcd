"""The image of the service, and what it starts."""
