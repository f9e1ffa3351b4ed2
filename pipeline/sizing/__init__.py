"""Right-sizing: which experts a task uses, variants that do with less, and which of them suits a machine."""
