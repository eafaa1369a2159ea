"""One folder a task; see cvpipe.task for what a task is."""
