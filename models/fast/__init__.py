"""The same formulas and layers, faster or in less memory. models/*.py never imports them; a caller puts them in."""
