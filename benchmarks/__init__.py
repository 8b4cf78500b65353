"""Every figure that the README and the docs quote, measured: `./run bench NAME`."""
