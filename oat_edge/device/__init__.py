"""The machine that is measured: what it is, what it draws, and the state it is in."""
