"""Simulated arms, servo emulators, rendering."""
