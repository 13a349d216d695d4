"""What a page shows: the paper's numbers, tidy rows, tables, sentences and figures. Nothing is measured here.

`exhibits.say` and `exhibits.show` are what a chapter calls, and `exhibits.save` at its end.
"""

from dfl_utils.exhibits.page import beside_paper, browse, compare, save, say, say_verdicts, show

__all__ = ["beside_paper", "browse", "compare", "save", "say", "say_verdicts", "show"]
