"""Draw what a model did with one sentence: for a terminal, as a page, as a picture.

Three drawings of one thing, a `Recording` with its `Contributions`.  Nothing is computed but means over
units and scales of colour, and no file is written.  Words come from anywhere, so no control character
of theirs reaches a terminal, and no mark-up of theirs a page.
"""

from unspool.page.document import html
from unspool.page.picture import figure
from unspool.page.terminal import terminal

__all__ = ["figure", "html", "terminal"]
