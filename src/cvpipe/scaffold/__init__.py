"""Writes new tasks: `dense_template` is a whole working one, copied under another name."""
