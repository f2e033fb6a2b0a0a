"""The paper's comparison: one OATS network against a dedicated one for every λ."""
