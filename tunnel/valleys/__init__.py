"""Where the best setting lies: minima with intervals, how they move, where training breaks. numpy only."""
