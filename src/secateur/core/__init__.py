"""Small frozen values with their invariants: what every other package speaks in. Imports errors and registry only."""
