"""What people look at: drawings of what a model did, for the terminal, a browser and paper.

From recordings to text, pages and pictures.  Nothing is computed here but means and scales for display:
what a gate or a contribution is stands in `introspect`, and no file is written (`cli`).
"""

from unspool.page.plots import plot

__all__ = ["plot"]
