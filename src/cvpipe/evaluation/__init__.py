"""Metrics on a labelled split, with intervals, plots and a report."""
