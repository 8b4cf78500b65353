"""A hospital's text files, checked and read into memory; nothing here leaves the machine."""
