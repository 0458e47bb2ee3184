"""How a law is fitted: sums of powers, their misfit, and the search for the least of it."""
