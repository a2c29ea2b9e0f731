"""Results: records with a published schema, the store that keeps them, intervals, and the tables that people read."""
