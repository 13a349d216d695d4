"""How the embedded models are made: their architectures, their training, the report on what they can do. Only its own
commands import it; what a run reads of the embedded world lies in `world`.
"""
