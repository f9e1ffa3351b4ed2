"""New data: what the sources hold now, how far it is from what was accepted before, and how much of it is new."""
