"""Measures of probabilities and labels, on NumPy arrays.

scikit-learn and SciPy take a second to import, and only a few functions use them: they are imported there.
"""
