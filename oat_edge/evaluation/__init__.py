"""Accuracy, standard and robust, of any runner. Needs numpy only."""
