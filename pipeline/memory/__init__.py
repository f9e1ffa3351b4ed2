"""How much memory each training stage of a params file takes, computed without torch and weights."""
