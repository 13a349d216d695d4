"""Networks opened and asked: checkpoints, captioners, generators, the encoders that judge, the probe, and the workshop
that names each of them for the keys of the store. What two of them say to each other is played in `game`.
"""
