"""The same formulas and layers, faster or in less memory."""
