"""unspool: recurrent networks, fast and in plain sight."""

__version__ = "0.1.0"
