"""Work done once, by any number of processes: kinds and keys, shards, claims, the published run, random streams, what
made a number. It knows neither models nor data sets: what a shard holds is the affair of whoever makes it.
"""
