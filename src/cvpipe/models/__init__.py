"""Networks by name, pretrained weights by source, optimizers for them. Shared by all tasks."""
