"""What each command of ``python -m train`` does; they import what they need when they run."""
