"""What leaves the federation: the adapter in PEFT's layout, its card and its signed provenance."""
