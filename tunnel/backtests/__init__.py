"""What held-out readings say of laws: hold-outs, rows, the choice of the form, intervals."""
