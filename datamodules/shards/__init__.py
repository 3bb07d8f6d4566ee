"""The files of a data set: its manifest, its tar shards and their indexes, built and read."""
