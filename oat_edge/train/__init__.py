"""Once-for-all adversarial training and slimming (DESIGN, section 6)."""
