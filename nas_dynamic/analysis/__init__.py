"""Analysis: what a ranking of subnets is worth, and how sure a difference is."""
