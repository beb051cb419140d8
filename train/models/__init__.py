"""Networks that take camera bytes."""
