"""What a page shows: the paper's numbers, tidy rows, tables, sentences and figures. Nothing is measured here.

`exhibits.answer` opens a chapter, `exhibits.say` and `exhibits.show` are what it calls, and `exhibits.save` ends it.
"""

from dfl_utils.exhibits.page import answer, beside_paper, browse, compare, save, say, say_verdicts, show

__all__ = ["answer", "beside_paper", "browse", "compare", "save", "say", "say_verdicts", "show"]
