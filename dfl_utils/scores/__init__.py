"""Numbers about captions and images: quality, similarity of texts, set scores, ranking, intervals. Arrays and strings
in, numbers out; no store, no profile and no game is known here.
"""
