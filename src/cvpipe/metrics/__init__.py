"""How good predictions are: what several tasks share."""
