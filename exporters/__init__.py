"""From a trained network to files that a device runs; the heavy modules are imported late."""
