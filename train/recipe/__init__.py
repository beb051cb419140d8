"""Recipes: stages, members, ensemble, evaluation and bundle by one command."""
