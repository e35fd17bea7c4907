"""Laws, fits, plans and comparisons. Imports no torch."""
