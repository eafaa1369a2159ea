"""Packed data sets: images with what is known about them, as rows of Arrow files or of a Delta table."""
