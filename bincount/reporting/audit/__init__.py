"""The page of an audit, on which people check bins and give verdicts."""

from bincount.reporting.audit.page import About, Tile, write

__all__ = ["About", "Tile", "write"]
