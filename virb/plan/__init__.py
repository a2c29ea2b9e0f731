"""The plan: encoders x tasks as a graph of work units; what is done, what is shared, how large and how long."""
