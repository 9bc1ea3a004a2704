"""Tasks, their losses, and the methods that combine the losses of several tasks."""
