"""From notebooks to pages: the command line, chapters and their execution, the book, publishing and verifying, what a
machine has and what it must fetch. Nothing imports it.
"""
