"""icecam on the station: frames in, ice masks and coverage out."""

__version__ = "0.1.0"
