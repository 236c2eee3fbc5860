"""A model of the whole protocol: random histories of all possible events, compared with a second, simpler account."""
