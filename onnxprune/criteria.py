"""The names of the criteria, apart from what they compute: the command line lists them without loading numpy."""

CRITERIA = ("spectral", "random", "magnitude", "magnitude-l1", "activation", "wanda", "variance", "reconstruction")
"""What units are ranked by; `scoring` says what each of them computes."""
