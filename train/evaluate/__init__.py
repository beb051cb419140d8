"""How good a run, an ensemble or a bundle is, measured on images it has not seen."""
