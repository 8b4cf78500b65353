"""Differentially private training of adapters, on the hospital's own machine."""
