"""Choosing and tuning: operating points, later quantisation and batch-norm statistics."""
