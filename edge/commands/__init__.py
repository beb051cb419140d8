"""What ``icecam`` can be asked to do, one file each; ``edge/__main__.py`` names them."""
