"""What commands of ``python -m export`` do, one file each; ``export/__main__.py`` names them."""
