"""Sections 4 and 5 of the paper: the vocabulary map, the connection, the four losses, the finetuning, and what a
finetuned pair is worth. How a number is shown is the affair of `exhibits`.
"""
