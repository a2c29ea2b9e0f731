"""ViRB: what do frozen visual encoders know?"""

__version__ = "0.1.0"
