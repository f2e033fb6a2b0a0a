"""Measuring an exported network on the device it runs on. Needs numpy only."""
