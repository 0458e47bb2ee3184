"""Does a setting transfer: penalty, drift, coordinate check, law."""
