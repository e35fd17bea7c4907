"""How results show themselves: numbers as text, small tables, and the charts' one look. Imports nothing heavy."""
