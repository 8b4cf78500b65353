"""Mechanism records (`mechanism`) and their price in ε (`accountant`)."""
