"""Training on the workstation: data, models, evaluation."""
