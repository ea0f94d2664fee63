"""Is the file what was learned?

Verification of a written model on its runtime against the simulation, and the search for the step at which the two part.
"""
