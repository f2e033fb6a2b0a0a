"""Adversarial attacks on folded networks."""
