"""Networks with named outputs, frozen: what they can be asked for, and how they are loaded."""
