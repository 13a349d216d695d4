"""What a run reads: the profile that names models and data, data sets, folders of one's own, and the drawn scenes of
the embedded world with their captions. No network is opened here, and nothing is scored.
"""
