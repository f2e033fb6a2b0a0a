"""Benches on other machines, over the system's OpenSSH."""
