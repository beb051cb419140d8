"""How much each member of an ensemble counts, and how sure the ensemble may be."""
