"""Readers of annotation formats: files -> rows. What the rows mean to training is `data.annotated`'s work.

A reader is a module with `look` (what of its format lies in a folder), `read` (one split) and `LAYOUT` (what it looks
for, in words).
"""
