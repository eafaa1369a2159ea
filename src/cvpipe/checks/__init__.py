"""Looks for what is wrong with a data set before time is spent on it: files, duplicates, leaks, boxes, labels."""
