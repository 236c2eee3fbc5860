"""A model of the whole protocol: random histories of everything that can happen, against a second, simpler account."""
