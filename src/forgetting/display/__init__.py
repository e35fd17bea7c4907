"""How results are shown: numbers as text, small tables, and the common style of charts. Imports nothing heavy."""
