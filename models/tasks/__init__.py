"""Tasks: the data, the loss and the metric of a job."""
